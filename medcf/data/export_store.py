# SPDX-License-Identifier: Apache-2.0
"""Write the images of a store as files, for programs that read nothing else: ``python -m medcf.data.export_store``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medcf.data.image import picture_affine
from medcf.data.synthetic_store import SyntheticStore
from medcf.runtime.atomic import write_csv, write_json
from medcf.runtime.choices import check_choice
from medcf.runtime.progress import progress_bar

__all__ = ["export_store", "main"]

Format = Literal["png", "nii.gz"]
NOTICE = "SYNTHETIC image made by medcf"


def export_store(store: SyntheticStore, folder: str | Path, format: Format = "png") -> list[dict[str, Any]]:
    """Write every image of a store into a folder of its class, and two tables.

    Args:
        store: the images; pictures (1, rows, columns) or volumes (1, X, Y, Z).
        folder: gets a folder per class, ``datalist.csv`` and ``datalist.json`` (MONAI's form, section ``training``).
        format: "png", 8 bits, for pictures; or "nii.gz", in [-1, 1], 1 mm per voxel as a store knows no spacing. Both
            say SYNTHETIC in their header.

    Returns:
        The rows: ``file`` relative to the folder, ``label``, ``class_name``, ``caption``, ``synthetic``.

    Raises:
        ValueError: if volumes are to be written as PNG, or the folder holds other files.
    """
    check_choice("format", format, Format)
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder.")
    if format == "png" and len(store.header["shape"]) != 3:
        raise ValueError(f"{store.folder} holds volumes, which a PNG cannot: use nii.gz.")
    rows = []
    with progress_bar(len(store), "images", unit="image") as bar:
        for index in range(len(store)):
            item = store[index]
            name = _folder_name(item.get("class_name") or "unlabeled")
            file = folder / name / f"{item['case']}.{format}"
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(item["image"].numpy(), file, format)
            row = {key: item[key] for key in ("class_name", "caption") if key in item}
            label = None if item.get("label") is None else int(item["label"])
            rows.append({"file": file.relative_to(folder).as_posix(), "label": label, **row, "synthetic": True})
            bar.update(1)
    write_csv(folder / "datalist.csv", rows)
    training = [{"image": row["file"], **{key: value for key, value in row.items() if key != "file"}} for row in rows]
    write_json(folder / "datalist.json", {"training": training})
    return rows


def _write(image: np.ndarray, file: Path, format: Format) -> None:
    if format == "png":
        about = PngInfo()
        about.add_text("Description", NOTICE)
        gray = ((image[0] + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(gray).save(file, pnginfo=about)
        return
    flat = image.ndim == 3
    values = image[0].T[..., None] if flat else image[0]  # NIfTI has columns first
    stored = nib.nifti1.Nifti1Image(values, picture_affine() if flat else np.eye(4))
    stored.header["descrip"] = NOTICE.encode()
    nib.save(stored, file)


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m medcf.data.export_store", description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--format", choices=("png", "nii.gz"), default="png")
    options = parser.parse_args(arguments)
    try:
        rows = export_store(SyntheticStore(options.store), options.folder, options.format)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"Wrote {len(rows)} images, datalist.csv and datalist.json to {options.folder}\n")


if __name__ == "__main__":
    main()
