# SPDX-License-Identifier: Apache-2.0
"""A contact sheet shows the run's own files, upright."""

from __future__ import annotations

from functools import partial

import nibabel as nib
import numpy as np
import pytest

from medcf.data import read, to_luminance
from medcf.data.image import geometry
from medcf.inference.case_result import CaseResult
from medcf.inference.inputs import list_cases
from medcf.inference.run_folder import RunFolder
from medcf.inference.writers import NiftiWriter
from medcf.phantoms.brain.files import GEOMETRIES
from medcf.report import read_run, summary_figure


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    listed = list_cases(None, None, out, demo_count=3, demo_size=(64, 80), demo_spacing=1.75)
    folder = RunFolder(out)
    folder.open(listed.cases)
    for case, path in ((each.id, each.path) for each in listed.cases):
        image = read(path)
        plane = to_luminance(image)[0].numpy()
        difference = np.zeros_like(plane)
        difference[:20, :10] = 0.25  # columns first: ten rows of twenty
        result = CaseResult(
            case, path, plane, np.clip(plane + difference, 0, 1), difference, np.stack([plane, plane]),
            geometry(image)[0], image.meta["source_format"], row={},
        )  # fmt: skip
        numbers = {"confidence_before": 0.1, "confidence_after": 0.9, "mean_absolute_difference": 0.1, "seconds": 1}
        row = {"case": case, "file": str(path), "format": image.meta["source_format"], "frame": 0, **numbers}
        row |= {"flipped": True, "unchanged": False}
        folder.complete(case, row | {"num_function_evaluations": 1}, partial(NiftiWriter(), result))
    folder.close({})
    return out


def test_columns_are_the_files_of_the_run(finished):
    columns = read_run(finished)
    assert len(columns) == 3
    for column in columns:
        assert column.title == "0.10 → 0.90"
        np.testing.assert_allclose(column.difference[:10, :20], 0.25)
        assert not column.difference[10:].any()
        np.testing.assert_allclose(column.counterfactual, np.clip(column.image + column.difference, 0, 1), atol=1e-6)
        assert column.truth is not None
        assert column.truth.shape == column.image.shape


def test_sheet_has_a_line_for_the_truth_only_where_it_is_known(finished):
    columns = read_run(finished, count=2)
    texts = [text.words for text in summary_figure(columns).texts]
    assert any("truth" in text for text in texts)
    assert any("SYNTHETIC" in text for text in texts)
    real = [type(column)(**{**column.__dict__, "truth": None}) for column in columns]
    assert not any("truth" in text.words for text in summary_figure(real).texts)


def test_unfinished_cases_are_refused(finished):
    with pytest.raises(ValueError, match="nobody"):
        read_run(finished, ["nobody"])
    with pytest.raises(ValueError, match="empty"):
        summary_figure([])


def test_a_volume_gives_its_axial_slice_through_the_change_with_the_truth_beside_it(tmp_path):
    demo = {"spacing": 8.0, "geometries": (GEOMETRIES[1],)}
    options = {"phantom": "brain_mri", "demo_count": 1, "spatial_dims": 3}
    options |= {f"demo_{name}": value for name, value in demo.items()}
    (case,) = list_cases(None, None, tmp_path, **options).cases
    folder = RunFolder(tmp_path)
    folder.open([case])
    source = nib.load(case.path)
    image = source.get_fdata(dtype=np.float32)
    difference = np.zeros_like(image)
    middle = tuple(n // 2 for n in image.shape)
    difference[tuple(slice(n - 2, n + 2) for n in middle)] = -0.5
    result = CaseResult(
        case.id, case.path, image, np.clip(image + 1000 * difference, 0, None), difference,
        image[None], source.affine, "nifti", window=(0, 1000), mask=image > 0,
    )  # fmt: skip
    numbers = {"confidence_before": 0.2, "confidence_after": 0.8, "black": 0.0, "white": 1000.0}
    sizes = {f"size_{axis}": n for axis, n in zip("ijk", image.shape, strict=True)}
    folder.complete(
        case.id,
        {"case": case.id, "file": str(case.path), "format": "nifti", "flipped": True, **sizes, **numbers},
        partial(NiftiWriter(), result),
    )
    (column,) = read_run(tmp_path, [case.id])
    assert column.image.shape == column.truth.shape == (200, 200)
    changed = np.argwhere(column.difference < -0.25)
    brain = np.argwhere(column.image > 0.2)
    assert brain[:, 0].min() < changed[:, 0].min() < changed[:, 0].max() < brain[:, 0].max()
    inside = tuple(changed.T)
    darker = np.clip(column.image + column.difference, 0, None)[inside]
    np.testing.assert_allclose(darker.mean(), column.counterfactual[inside].mean(), atol=0.05)
    case.path.unlink()  # then the input is what the outputs leave of it
    (again,) = read_run(tmp_path, [case.id])
    outside = column.difference == 0
    np.testing.assert_allclose(again.image[outside], column.image[outside], atol=1e-4)
    texts = [text.words for text in summary_figure([column]).texts]
    assert any("in the other class" in text for text in texts)
