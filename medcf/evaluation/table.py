# SPDX-License-Identifier: Apache-2.0
"""Anybody's counterfactuals as evidence: a table of files, read in any format and put onto the input's grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medcf.data import read, read_labels, to_luminance
from medcf.data.case import read_records
from medcf.data.image import geometry
from medcf.evaluation.evidence import AbsentError, Evidence
from medcf.metrics.structures import StructureDice
from medcf.runtime.errors import UnreadableImage

__all__ = ["COLUMNS", "TableRow", "read_cells", "read_rows"]

#: Columns of the table with images, label maps, and Booleans, and the evidence that they become.
IMAGES = {"input": "image", "counterfactual": "pred", "truth": "image_true", "own": "own", "again": "again"}
LABELS = {
    "segmentation_input": "segmentation",
    "segmentation_counterfactual": "segmentation(pred)",
    "segmentation_truth": "segmentation_true",
    "organ": "organ",
}
FLAGS = {"flipped": "flipped", "confirmed": "confirmed"}
COLUMNS = {**IMAGES, **LABELS, **FLAGS}

_REQUIRED = ("input", "counterfactual")
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")
_CLASSES = ("target", "class_input", "class_counterfactual")


@dataclass(frozen=True)
class TableRow:
    """A row of the table.

    Attributes:
        number: its number, from 1.
        cells: its filled cells, as text.
        root: folder to which its paths are relative.
        problem: why it cannot be measured, with a remedy; empty if it can.
    """

    number: int
    cells: Mapping[str, str]
    root: Path
    problem: str = ""

    @property
    def case(self) -> str:
        """Name of the case: its column, or the number of the row."""
        return self.cells.get("case", f"row {self.number}")

    @property
    def subject(self) -> str:
        """The subject; if unknown, every case is its own."""
        return self.cells.get("subject", self.case)

    def evidence(self, structures: Mapping[str, int]) -> Evidence:
        """Read the files of this row.

        Gray values are scaled to [-1, 1]: a picture's from black to white (0 to 1, 0 to 255 or -1 to 1, whatever each
        file has; other numbers by the input's range), a volume's from the smallest to the largest value of the input.

        Args:
            structures: label of each structure, by name.

        Returns:
            One case.

        Raises:
            UnreadableImage: if a file cannot be read, or is on another grid than the input.
            ValueError: if it has a problem, a required cell is empty, or a cell that should be true or false is
                neither.
        """
        if self.problem:
            raise ValueError(self.problem)
        for name in _REQUIRED:
            if name not in self.cells:
                raise ValueError(f"the column {name!r} is empty: name the file")
        stored = {name: read(self._path(name)) for name in IMAGES if name in self.cells}
        labels = {name: read_labels(self._path(name)) for name in LABELS if name in self.cells}
        for name, image in {**stored, **labels}.items():
            _expect_grid(self._path(name), image, stored["input"])
        columns: dict[str, Any] = {"case": [self.case], "subject": [self.subject]}
        columns |= {IMAGES[name]: _scaled(image, stored["input"])[None] for name, image in stored.items()}
        columns |= {LABELS[name]: image.as_subclass(Tensor)[None] for name, image in labels.items()}
        columns |= {FLAGS[name]: torch.tensor([_flag(name, self.cells[name])]) for name in FLAGS if name in self.cells}
        if "flipped" not in columns and all(name in self.cells for name in _CLASSES):
            # a table program writes 1 as 1.0 once a cell of the column is empty
            target, before, after = (self.cells[name].casefold().removesuffix(".0") for name in _CLASSES)
            if before != target:  # otherwise there was nothing to flip
                columns["flipped"] = torch.tensor([after == target])
        return Evidence(columns, structures=structures, functions={"dice": _dice})

    def _path(self, name: str) -> Path:
        return self.root / self.cells[name]


def read_rows(table: str | Path, dataset_dir: str | Path | None = None) -> list[TableRow]:
    """Read a table of counterfactuals, CSV or JSON; no image is opened.

    Args:
        table: the file.
        dataset_dir: folder to which its paths are relative; None takes that of the table.

    Returns:
        Its rows.

    Raises:
        FileNotFoundError: if the table does not exist.
        ValueError: if it cannot be parsed, is empty, or lacks the columns ``input`` and ``counterfactual``.
    """
    path = Path(table)
    cells = read_cells(path)
    known = dict.fromkeys(name for each in cells for name in each)
    lacking = [name for name in _REQUIRED if name not in known]
    if lacking:
        raise ValueError(
            f"table {path.name!r} has no column {' and no column '.join(map(repr, lacking))} (its columns: "
            f"{', '.join(known)}): name the columns with the images {' and '.join(map(repr, _REQUIRED))}"
        )
    root = path.parent if dataset_dir is None else Path(dataset_dir)
    filled = [{key: value for key, value in each.items() if value} for each in cells]
    return [TableRow(number, each, root) for number, each in enumerate(filled, start=1)]


def read_cells(table: Path) -> list[dict[str, str]]:
    """Read the rows of a table as text, with every column that they have.

    Raises:
        OSError: if the table does not exist, or cannot be opened.
        ValueError: if it cannot be parsed or is empty.
    """
    try:
        records = read_records(table, "table")
    except PermissionError as error:
        raise PermissionError(
            f"table {str(table)!r} cannot be opened ({error.strerror}): allow it to be read"
        ) from error
    return [{str(k): str(v).strip() for k, v in each.items() if k and v is not None} for each in records]


def _expect_grid(path: Path, image: MetaTensor, reference: MetaTensor) -> None:
    """Compare the pixels, and in volumes their position."""
    shape, expected = tuple(image.shape[1:]), tuple(reference.shape[1:])
    remedy = "Resample it onto the input's grid; medcf writes its results there."
    if shape != expected:
        shown = " instead of ".join(" x ".join(map(str, size)) for size in (shape, expected))
        raise UnreadableImage(path, f"is on another grid than its input ({shown})", remedy)
    if len(shape) == 3 and not np.allclose(geometry(image)[0], geometry(reference)[0], atol=0.05):
        raise UnreadableImage(path, "has another position or orientation than its input", remedy)


def _scaled(image: MetaTensor, reference: MetaTensor) -> Tensor:
    """Scale gray values so that black to white, or the range of the reference, maps to [-1, 1]."""
    gray = to_luminance(image).as_subclass(Tensor).float()
    own, of_reference = (tuple(map(float, each.meta["value_range"])) for each in (image, reference))
    if image.ndim == 3:
        if any(math.isnan(value) for value in own):  # by a lookup table
            return gray * 2 - 1
        gray = gray * (own[1] - own[0]) + own[0]  # as stored
        black_white = _black_white(image) or _black_white(reference) or of_reference
    else:
        black_white = of_reference
    low, high = black_white
    return (gray - low) / (high - low if high != low else 1.0) * 2 - 1


def _black_white(picture: MetaTensor) -> tuple[float, float] | None:
    """Return the stored values that mean black and white; None if the reader had to take those of this one file.

    A value slightly above 1 in a picture of [0, 1] does not make it one of 8 bits.
    """
    low, high = (float(value) for value in picture.meta["value_range"])
    if (low, high) == (0.0, 1.0) or ((low, high) == (0.0, 255.0) and float(picture.max()) * high <= 2):
        return 0.0, 1.0
    if (low, high) == (0.0, 255.0):
        return low, high
    return (-1.0, 1.0) if -1.1 <= low < 0 and high <= 1.1 else None


def _flag(name: str, text: str) -> bool:
    word = text.casefold().removesuffix(".0")
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError(f"the column {name!r} holds {text!r}: write true or false")


def _dice(cases: Evidence, structure: str) -> Tensor:
    """Dice of a named structure with the truth, (B,)."""
    for name in ("segmentation(pred)", "segmentation_true"):
        if name not in cases.columns:
            raise AbsentError(f"{name!r} is absent")
    scores: Any = StructureDice({structure: cases.structures[structure]})(
        cases["segmentation(pred)"], cases["segmentation_true"]
    )
    return scores[:, 0]
