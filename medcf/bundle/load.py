# SPDX-License-Identifier: Apache-2.0
"""A bundle as a single Python object: ``medcf.load("diffice")("head.png").save("out")``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from medcf.bundle.options import method_problems, unknown_options
from medcf.bundle.source import CONFIG, find_bundle
from medcf.inference import Explainer
from medcf.runtime.error_report import root_cause

__all__ = ["BundleExplainer", "load", "open_config"]


class BundleExplainer(Explainer):
    """The `Explainer` for a bundle's ``inference.json``; its networks are built on first use.

    It pickles as the bundle's folder and the options, so a data loader's worker builds its own.

    Args:
        folder: folder of the bundle.
        overrides: config ids and their values.

    Raises:
        FileNotFoundError: if the folder does not hold a bundle.
        ValueError: if an override is not a config id; names the closest ones.
    """

    unpacked: tempfile.TemporaryDirectory[str] | None = None

    def __init__(self, folder: str | PathLike[str], overrides: dict[str, Any]) -> None:
        self.folder, self.overrides = Path(folder).resolve(), overrides
        self.parser = open_config(self.folder, overrides)

    def __getattr__(self, name: str) -> Any:
        """Build the parts on first access to one of them."""
        if name.startswith("__") or "parser" not in vars(self) or "preprocessing" in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            with torch.random.fork_rng(devices=[]):  # networks draw random weights before loading
                built = self.parser.get_parsed_content("explainer")
        except Exception as error:
            raise root_cause(error) from None
        vars(self).update(vars(built))
        return getattr(self, name)

    def __repr__(self) -> str:
        """Show the bundle and the settings that users change; no network is built for it."""
        method, names, target, device = map(self._setting, ("method", "class_names", "target", "device"))
        if isinstance(target, int) and isinstance(names, Sequence) and 0 <= target < len(names):
            target = names[target]
        name = self.parser.get("_meta_", {}).get("bundle", self.folder.name)  # a hub's folder has a hash for a name
        return (
            f"{type(self).__name__}(bundle={name!r}, method={method!r}, classes={names!r}, "
            f"target={target!r}, device={str(device)!r})"
        )

    def _setting(self, name: str) -> Any:
        """Return the value of a top-level id; as it is written if it cannot be evaluated."""
        try:
            return self.parser.get_parsed_content(name, default=None)
        except Exception:
            return self.parser.get(name)

    def __reduce__(self) -> tuple[type[BundleExplainer], tuple[str, dict[str, Any]]]:
        return type(self), (str(self.folder), self.overrides)


def open_config(folder: Path, overrides: dict[str, Any]) -> ConfigParser:
    """Read a bundle's ``inference.json`` and set options in it; nothing is built.

    Args:
        folder: folder of the bundle, an absolute path.
        overrides: config ids and their values.

    Raises:
        FileNotFoundError: if the folder does not hold a bundle.
        ValueError: if an override is not a config id; names the closest ones.
    """
    config = folder / "configs" / CONFIG
    if not config.is_file():
        raise FileNotFoundError(f"{folder} is not a bundle that can be loaded: it has no configs/{CONFIG}.")
    parser = ConfigParser()
    parser.read_config(str(config))
    if (metadata := folder / "configs" / "metadata.json").is_file():
        parser.read_meta(str(metadata))
    known = parser.get()
    if problems := unknown_options(list(overrides), known) + method_problems(overrides, known):
        raise ValueError("\n".join(problems).replace("--", ""))
    for key, value in {"bundle_root": str(folder), **overrides}.items():
        parser.set(value, key)  # a method that the config does not mention has no entry yet
    return parser


def load(source: str | PathLike[str], **overrides: Any) -> Explainer:
    """Load a bundle: parse its ``inference.json`` and build its parts on first use.

    Nothing is run: no ``initialize``, no seeds, no logging, no command line, no change of the working directory.

    Args:
        source: a bundle's folder, also in the cache of ``huggingface_hub``, its zip archive, or the name of one shipped
            with medcf (``"diffice"``).
        overrides: the same values as on a command line: ``target=0``, ``method="sdedit"``,
            ``**{"inferer#strength": 0.4}``.

    Returns:
        Called with an image it returns a `medcf.inference.CaseResult`; ``run`` explains whole folders.

    Raises:
        FileNotFoundError: if the bundle does not exist.
        ValueError: if an override is not a config id, or the archive does not hold a bundle.

    Example:
        >>> load("diffice", tagret=0)
        Traceback (most recent call last):
        ...
        ValueError: Unknown option tagret. Did you mean target? ...
    """
    folder, unpacked = find_bundle(source)
    explainer = BundleExplainer(folder, overrides)
    explainer.unpacked = unpacked  # deleted with the explainer
    return explainer
