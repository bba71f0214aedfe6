# SPDX-License-Identifier: Apache-2.0
"""A bundle as a single Python object: ``medcf.load("diffice")("head.png").save("out")``."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from medcf.bundle.options import method_problems, unknown_options
from medcf.bundle.root import bundle_folder
from medcf.inference import Explainer
from medcf.runtime.error_report import root_cause

__all__ = ["BundleExplainer", "load"]

CONFIG = "inference.json"


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
        root = Path(folder).resolve()
        config = root / "configs" / CONFIG
        if not config.is_file():
            raise FileNotFoundError(f"{root} is not a bundle that can be loaded: it has no configs/{CONFIG}.")
        self.folder, self.overrides = root, overrides
        self.parser = ConfigParser()
        self.parser.read_config(str(config))
        if (metadata := root / "configs" / "metadata.json").is_file():
            self.parser.read_meta(str(metadata))
        known = self.parser.get()
        if problems := unknown_options(list(overrides), known) + method_problems(overrides, known):
            raise ValueError("\n".join(problems).replace("--", ""))
        for key, value in {"bundle_root": str(root), **overrides}.items():
            self.parser.set(value, key)  # a method that the config does not mention has no entry yet

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
        return (
            f"{type(self).__name__}(bundle={self.folder.name!r}, method={method!r}, classes={names!r}, "
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


def load(source: str | PathLike[str], **overrides: Any) -> Explainer:
    """Load a bundle: parse its ``inference.json`` and build its parts on first use.

    Nothing is run: no ``initialize``, no seeds, no logging, no command line, no change of the working directory.

    Args:
        source: a bundle's folder, its zip archive, or the name of one shipped with medcf (``"diffice"``).
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
    path = Path(source).expanduser()
    if path.is_dir() and (path / "configs").is_dir():
        return BundleExplainer(path, overrides)
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not a zip archive: give a bundle's folder, its zip archive, or its name.")
        unpacked = tempfile.TemporaryDirectory(prefix="medcf-")  # its own folder, which nobody else can have filled
        with zipfile.ZipFile(path) as stored:
            stored.extractall(unpacked.name)  # zipfile keeps members from leaving the folder
        found = sorted(Path(unpacked.name).rglob(f"configs/{CONFIG}"))
        if not found:
            raise ValueError(f"{path} does not hold a bundle: it has no configs/{CONFIG}.")
        explainer = BundleExplainer(found[0].parents[1], overrides)
        explainer.unpacked = unpacked  # deleted with the explainer
        return explainer
    if len(path.parts) != 1:
        raise FileNotFoundError(f"{path} does not exist: give a bundle's folder, its zip archive, or its name.")
    return BundleExplainer(bundle_folder(str(source)), overrides)
