# SPDX-License-Identifier: Apache-2.0
"""A contact sheet shows the run's own files, upright."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medcf.data import read_study
from medcf.inference.case_result import CaseResult
from medcf.inference.nifti_writer import NiftiWriter
from medcf.inference.run_folder import RunFolder
from medcf.phantoms import write_brain_demo, write_demo
from medcf.phantoms.brain.files import GEOMETRIES
from medcf.report import read_run, summary_figure


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    write_demo(out / "demo_inputs", count=3, truth_dir=out / "demo_truth", size=(64, 80), spacing=1.75)
    paths = sorted((out / "demo_inputs").iterdir())
    folder = RunFolder(out)
    folder.open([{"case": path.name.split(".")[0], "image": path} for path in paths])
    for case, path in folder.inputs.items():
        image = read_study(path)
        plane = image[0].numpy()
        difference = np.zeros_like(plane)
        difference[:10, :20] = 0.25
        result = CaseResult(
            case, path, plane, np.clip(plane + difference, 0, 1), difference, np.stack([plane, plane]),
            image.affine.numpy(), image.meta["source_format"], row={},
        )  # fmt: skip
        folder.case_dir(case).mkdir()
        NiftiWriter()(result, folder.case_dir(case))
        numbers = {"confidence_before": 0.1, "confidence_after": 0.9, "mean_absolute_difference": 0.1, "seconds": 1}
        row = {"case": case, "file": str(path), "frame": 0, "flipped": True, "unchanged": False, **numbers}
        folder.complete(case, row | {"num_function_evaluations": 1})
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
    texts = [text.get_text() for text in summary_figure(columns).axes[0].texts]
    assert any("truth" in text for text in texts)
    assert any("SYNTHETIC" in text for text in texts)
    real = [type(column)(**{**column.__dict__, "truth": None}) for column in columns]
    assert not any("truth" in text.get_text() for text in summary_figure(real).axes[0].texts)


def test_unfinished_cases_are_refused(finished):
    with pytest.raises(ValueError, match="nobody"):
        read_run(finished, ["nobody"])
    with pytest.raises(ValueError, match="empty"):
        summary_figure([])


def test_a_volume_gives_its_axial_slice_through_the_change_with_the_truth_beside_it(tmp_path):
    (record,) = write_brain_demo(
        tmp_path / "demo_inputs", count=1, spacing=8.0, geometries=(GEOMETRIES[1],), truth_dir=tmp_path / "demo_truth"
    )
    folder = RunFolder(tmp_path)
    folder.open([{"case": record["case"], "image": record["path"]}])
    source = nib.load(record["path"])
    image = source.get_fdata(dtype=np.float32)
    difference = np.zeros_like(image)
    middle = tuple(n // 2 for n in image.shape)
    difference[tuple(slice(n - 2, n + 2) for n in middle)] = -0.5
    result = CaseResult(
        record["case"], Path(record["path"]), image, np.clip(image + 1000 * difference, 0, None), difference,
        image[None], source.affine, "nifti", window=(0, 1000), mask=image > 0,
    )  # fmt: skip
    folder.case_dir(record["case"]).mkdir()
    NiftiWriter()(result, folder.case_dir(record["case"]))
    numbers = {"confidence_before": 0.2, "confidence_after": 0.8, "black": 0.0, "white": 1000.0}
    sizes = {f"size_{axis}": n for axis, n in zip("ijk", image.shape, strict=True)}
    folder.complete(
        record["case"],
        {"case": record["case"], "file": record["path"], "format": "nifti", "flipped": True, **sizes, **numbers},
    )
    (column,) = read_run(tmp_path, [record["case"]])
    assert column.image.shape == column.truth.shape == (200, 200)
    changed = np.argwhere(column.difference < -0.25)
    brain = np.argwhere(column.image > 0.2)
    assert brain[:, 0].min() < changed[:, 0].min() < changed[:, 0].max() < brain[:, 0].max()
    inside = tuple(changed.T)
    darker = np.clip(column.image + column.difference, 0, None)[inside]
    np.testing.assert_allclose(darker.mean(), column.counterfactual[inside].mean(), atol=0.05)
    Path(record["path"]).unlink()  # then the input is what the outputs leave of it
    (again,) = read_run(tmp_path, [record["case"]])
    outside = column.difference == 0
    np.testing.assert_allclose(again.image[outside], column.image[outside], atol=1e-4)
    texts = [text.get_text() for text in summary_figure([column]).axes[0].texts]
    assert any("in the other class" in text for text in texts)
