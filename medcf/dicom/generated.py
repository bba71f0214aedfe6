# SPDX-License-Identifier: Apache-2.0
"""Images made from noise as secondary captures without a patient: ``python -m medcf.dicom.generated STORE FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medcf.data.synthetic_store import SyntheticStore
from medcf.dicom.banner import draw_banner
from medcf.dicom.capture import capture
from medcf.dicom.derived import Kind
from medcf.dicom.job import Job, hash_of
from medcf.dicom.marks import save
from medcf.runtime.choices import check_choice
from medcf.runtime.owned import fill_folder
from medcf.runtime.progress import progress_bar

__all__ = ["OutputFormat", "export_generated", "main", "write_generated"]

OutputFormat = Literal["store", "dicom"]
_READABLE = 96  # columns that SYNTHETIC takes in letters that can be read
_DEPTHS = {2: (255, np.uint8), 3: (4095, np.uint16)}  # the largest gray value of pictures and of volumes


def export_generated(store: SyntheticStore, folder: str | Path, bundle: str = "medcf", *, banner: bool = True) -> int:
    """Write every image of a store as a DICOM object: one study per store, one series per class or prompt.

    Args:
        store: the images, in [-1, 1]; a volume becomes one object with a frame per slice.
        folder: gets ``<case>.dcm``; objects of an earlier call that are the store's no more are removed.
        bundle: name of the bundle that made the store.
        banner: write SYNTHETIC into the images; small ones are enlarged by a whole number, so that it can be read.

    Returns:
        The number of objects.

    Raises:
        FileExistsError: if someone else's file is in the way.
    """
    provenance = dict(store.header["provenance"])
    weights = {name: value for name, value in provenance.items() if name.endswith("sha256")}
    job = Job(bundle, hash_of(weights), hash_of({**provenance, "banner": banner}))

    def write(part: Path) -> None:
        with progress_bar(len(store), "DICOM objects", unit="object") as bar:
            for index in range(len(store)):
                item = store[index]
                save(_object(item, job, banner=banner), part / f"{item['case']}.dcm")
                bar.update(1)

    return len(fill_folder(Path(folder), write))


def write_generated(
    store: SyntheticStore | None, output_format: OutputFormat = "store", bundle: str = "medcf", *, banner: bool = True
) -> SyntheticStore | None:
    """Write a store's images as DICOM into its folder ``dicom`` too, if that is asked for: the end of a bundle's run.

    Args:
        store: what the run made; None, on processes other than the main one, does nothing.
        output_format: "store" writes nothing more.
        bundle: name of the bundle.
        banner: write SYNTHETIC into the images.

    Returns:
        The store.
    """
    check_choice("output_format", output_format, OutputFormat)
    if store is not None and output_format == "dicom":
        export_generated(store, store.folder / "dicom", bundle, banner=banner)
    return store


def _object(item: dict[str, Any], job: Job, *, banner: bool) -> Any:
    shown = str(item.get("caption") or item.get("class_name") or "image")
    image = item["image"][0].numpy()
    top, depth = _DEPTHS[image.ndim]
    pixels = np.rint((image + 1) / 2 * top).clip(0, top).astype(depth)
    planes = pixels.transpose(2, 1, 0) if image.ndim == 3 else pixels[None]  # a picture has rows first already
    if banner:
        times = -(-_READABLE // planes.shape[2])  # pixels are repeated until the word fits
        planes = planes.repeat(times, 1).repeat(times, 2)
        planes = np.stack([draw_banner(plane, 0, top) for plane in planes])
    kind = Kind("generated", 901, f"{shown}, of no patient", f"Made from noise as {shown}, seed {item.get('seed')}.")
    made = capture(planes if image.ndim == 3 else planes[0], kind, job, item["case"], burned=banner)
    made.StudyInstanceUID, made.SeriesInstanceUID = job.uid("study"), job.uid("series", shown)
    made.InstanceNumber = int(item["index"]) + 1
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the objects."""
    parser = argparse.ArgumentParser(prog="python -m medcf.dicom.generated", description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", default="medcf", help="name of the bundle that made the store")
    parser.add_argument("--no-banner", action="store_true", help="do not write SYNTHETIC into the images")
    options = parser.parse_args(arguments)
    try:
        count = export_generated(
            SyntheticStore(options.store), options.folder, options.bundle, banner=not options.no_banner
        )
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"Wrote {count} DICOM objects to {options.folder}\n")


if __name__ == "__main__":
    main()
