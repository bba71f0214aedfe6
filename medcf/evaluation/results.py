# SPDX-License-Identifier: Apache-2.0
"""The results of a run as rows to score: each counterfactual with the cleaned original that it was made from.

What a preprocessing removes, such as burned-in text, is missing in the counterfactual, too. Next to the input file that
would count as an effect of the counterfactual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medcf.data import Case, find_cases
from medcf.evaluation.table import TableRow, read_cells

__all__ = ["read_results"]

SCORES, ORIGINAL, COUNTERFACTUAL = "scores.csv", "original.nii.gz", "counterfactual.nii.gz"
_AGAIN = "run it again with --overwrite True and the NIfTI writer"


def read_results(folder: str | Path, truth: str | Path | None = None) -> tuple[list[TableRow], list[str]]:
    """Read the results folder of a run; no image is opened.

    Args:
        folder: the run's ``output_dir``, with ``scores.csv`` and a folder for each case.
        truth: folder with the true image of each case, of any format, on the pixels or voxels of its input. It is named
            like the input, also below the same subfolders, or its name goes on after that with an underscore:
            ``head_standard.png`` for ``head.png``.

    Returns:
        A row for each case, with the columns of ``scores.csv``; frames of one file have one subject. And the cases that
        were already of the target class, which a run returns as they are.

    Raises:
        FileNotFoundError: if it is no results folder of a finished run, or ``truth`` does not exist.
        ValueError: if no case has an original, or none has a true image.
    """
    root = Path(folder)
    if not (root / SCORES).is_file():
        raise FileNotFoundError(
            f"{str(root)!r} is a folder without {SCORES}: name the output_dir of a finished run, or a CSV or JSON table"
        )
    scores = read_cells(root / SCORES)
    scores = [{**row, "case": _folder_name(root, row.get("case", ""))} for row in scores]
    left_out = [row["case"] for row in scores if row.get("unchanged", "").casefold() == "true"]
    entered = [row for row in scores if row["case"] not in left_out]
    if entered and not any((root / row["case"] / ORIGINAL).is_file() for row in entered):
        raise ValueError(f"the case folders in {str(root)!r} hold no {ORIGINAL}: {_AGAIN}")
    names = [row["case"] for row in entered]
    true = {} if truth is None or not entered else _true_images(Path(truth), names, "size_k" in entered[0])
    rows = [_row(number, cells, root, truth, true) for number, cells in enumerate(entered, start=1)]
    return rows, left_out


def _folder_name(root: Path, case: str) -> str:
    """Return the name of a case's folder; a cell that a spreadsheet would run has an apostrophe in front."""
    return case if (root / case).is_dir() else case.removeprefix("'")


def _row(
    number: int, cells: Mapping[str, str], root: Path, truth: str | Path | None, true: Mapping[str, Sequence[Path]]
) -> TableRow:
    """Name the files of a case, and what is wrong with it."""
    case = cells["case"]
    files = {"input": str(Path(case) / ORIGINAL), "counterfactual": str(Path(case) / COUNTERFACTUAL)}
    problem = "".join(
        f"{case}: holds no {Path(each).name}: {_AGAIN}" for each in files.values() if not (root / each).is_file()
    )
    found = true.get(case, ())
    if len(found) == 1:
        files["truth"] = str(found[0].absolute())
    elif truth is not None:
        many = f"several true images of {case} ({', '.join(path.name for path in found)}): keep one of them"
        problem = problem or f"{truth} holds " + (
            many if found else f"no true image of {case}: name it {case}.png or alike"
        )
    classes = {"label_before": "class_input", "label_after": "class_counterfactual"}
    known = {classes.get(name, name): cell for name, cell in cells.items() if name != "flipped"}  # follows from these
    subject = {"subject": cells["file"]} if "file" in cells else {}
    return TableRow(number, subject | known | files, root, problem)


def _true_images(folder: Path, names: Sequence[str], volumes: bool) -> dict[str, list[Path]]:
    """Find the true images of each case: the one of its name, or else those whose names go on with an underscore."""
    owned: dict[str, dict[str, Path]] = {}
    found, _ = find_cases(folder, spatial_dims=3 if volumes else 2)
    for image in found:
        owners = [name for name in names if image.id == name or image.id.startswith(f"{name}_")]
        if owners:
            owned.setdefault(max(owners, key=len), {})[image.id] = _path(image)
    if not owned:
        example = f"{found[0].id} is there, {names[0]} is needed" if found else f"{names[0]} is needed"
        raise ValueError(f"{str(folder)!r} holds no true image of any case ({example}): name them like the inputs")
    return {name: [paths[name]] if name in paths else list(paths.values()) for name, paths in owned.items()}


def _path(image: Case) -> Path:
    """Return the file of an image, or the folder of a series."""
    return image.path if len(image.files) == 1 else image.path.parent
