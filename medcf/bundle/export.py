# SPDX-License-Identifier: Apache-2.0
"""Export a bundle: ``python -m medcf.bundle export NAME --format onnx``."""

from __future__ import annotations

import argparse
import json
import sys
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch

import medcf
from medcf.bundle.archive import write_archive
from medcf.bundle.command_line import parse_options
from medcf.bundle.load import open_config
from medcf.bundle.source import CONFIG, find_bundle
from medcf.networks.export import SUFFIXES, Format, export_network
from medcf.runtime.choices import check_choice
from medcf.runtime.error_report import root_cause

__all__ = ["BundleFormat", "export_bundle", "main"]

BundleFormat = Literal[Format, "zip"]

#: What an export is made with, whatever a run uses: the results are for any device and layout.
_PLAIN = {"device": "cpu", "channels_last": False, "compile": False}


def export_bundle(
    source: str | PathLike[str],
    format: BundleFormat,
    output: str | PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    **overrides: Any,
) -> tuple[Path, str]:
    """Write a bundle's denoiser for another runtime, or the whole bundle as a zip archive.

    Args:
        source: see `medcf.bundle.source.find_bundle`.
        format: "torchscript", "exported" or "onnx", see `medcf.networks.export.export_network`; or "zip".
        output: folder to write into; None means ``output/NAME/export``.
        overwrite: replace a file that exists.
        overrides: options of the bundle's ``inference.json`` that choose the weights, such as ``models_dir``.

    Returns:
        The file written, and a sentence about it.

    Raises:
        FileExistsError: if the file exists.
        FileNotFoundError: if the bundle or its weights do not exist.
        ImportError: if ONNX is asked for and not installed.
        ValueError: if an option is unknown, or the network cannot be exported; the message says why and what to do.
    """
    check_choice("format", format, BundleFormat)
    folder, unpacked = find_bundle(source)
    try:
        folder = folder.resolve()
        parser = open_config(folder, overrides)
        metadata = parser.get("_meta_", {})
        name, version = metadata.get("bundle", folder.name), metadata.get("version", "0")
        target = Path("output", name, "export") if output is None else Path(output).expanduser()
        target /= f"{name}_v{version}.zip" if format == "zip" else f"model{SUFFIXES[format]}"
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} exists: name another folder by --output, or replace it by --overwrite.")
        if format == "zip":
            if overrides:
                raise ValueError(f"A zip archive holds the bundle as it is: leave {', '.join(overrides)} away.")
            return target, f"{write_archive(folder, target, name)} files"
        for key, value in _PLAIN.items():
            if key in parser.get() and key not in overrides:
                parser.set(value, key)
        try:
            with torch.random.fork_rng(devices=[]):  # networks draw random weights before loading
                network = parser.get_parsed_content("network")
        except Exception as error:
            raise root_cause(error) from None
        record = {"bundle": name, "bundle_version": version, "medcf": medcf.__version__}
        texts = {f"{Path(each).stem}.json": _text(folder, each) for each in ("metadata.json", CONFIG)}
        worst = export_network(network, target, format, record=record, files=texts)
        return target, f"differs from the network by at most {worst:.1g}"
    finally:
        if unpacked is not None:
            unpacked.cleanup()


def _text(folder: Path, name: str) -> str:
    """Return a config as MONAI's ``ckpt_export`` stores it."""
    return json.dumps(json.loads((folder / "configs" / name).read_text(encoding="utf-8")))


def main(argv: list[str]) -> int:
    """Run the command with the words after ``export``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m medcf.bundle export",
        description="Write a bundle's denoiser for another runtime, or the bundle as a zip archive.",
        epilog="Options of the bundle's inference.json that choose the weights, such as --models_dir DIR, may follow.",
    )
    parser.add_argument("bundle", help="name, folder or zip archive of a bundle, or its folder in a hub's cache")
    parser.add_argument("--format", required=True, choices=[*get_args(Format), "zip"])
    parser.add_argument("--output", help="folder to write into (default: output/NAME/export)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    known, rest = parser.parse_known_args(argv)
    if rest and not rest[0].startswith("-"):
        parser.error(f"one bundle at a time: {known.bundle!r} and {rest[0]!r}")
    try:
        path, about = export_bundle(
            known.bundle, known.format, known.output, overwrite=known.overwrite, **parse_options(rest)
        )
    except (ImportError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}: {about}\n")
    return 0
