# SPDX-License-Identifier: Apache-2.0
"""The evaluator isolates bad cases, and what it writes lies where the input lay."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.transforms import Compose, LoadImaged
from PIL import Image
from torch.utils.data import DataLoader

from medcf.data import Case, StudyReader, find_cases, read
from medcf.inference.cases import CaseDataset, PendingBatches, collate_cases
from medcf.inference.evaluator import CaseWriter, CounterfactualEvaluator
from medcf.inference.explainer import Explainer
from medcf.inference.run_folder import RunFolder
from medcf.inference.writers import NiftiWriter
from medcf.inferers import UnchangedInferer
from medcf.inferers.counterfactual import Counterfactual
from medcf.runtime.errors import UnreadableImage
from medcf.transforms import AddDifferenced, ToGridd

SIZE = (32, 40)


class BrightnessClassifier(torch.nn.Module):
    """Class 1 is a picture whose mean is above 0."""

    def forward(self, image):
        mean = image.mean((1, 2, 3))
        return torch.stack([-10 * mean, 10 * mean], dim=1)


class Brighten:
    """A method in two passes: adds ``step`` each; black pictures make it raise, or give NaN."""

    def __init__(self, step=0.5, on_black="raise"):
        self.step, self.on_black = step, on_black
        self.calls = []

    def explain(self, inputs, network, sample_ids=None, target=None):
        self.calls.append(len(sample_ids))
        black = (inputs.amax((1, 2, 3)) < -0.9) if self.on_black else torch.zeros(len(inputs), dtype=torch.bool)
        if self.on_black == "raise" and bool(black.any()):
            raise ValueError("this picture is black")
        steps = [inputs, inputs + self.step, inputs + 2 * self.step]
        trajectory = torch.stack(steps, dim=1)
        trajectory[black] = float("nan")
        hits = torch.stack([BrightnessClassifier()(step).softmax(1)[:, 1] for step in steps], dim=1)
        long = torch.full((len(inputs),), 2)
        return Counterfactual(
            image=trajectory[:, -1], trajectory=trajectory, confidences=hits, target=torch.ones_like(long),
            num_function_evaluations=long, flipped=hits[:, -1] > 0.5, unchanged=torch.zeros_like(hits[:, 0]) > 0,
            scale=torch.full((len(inputs),), 5.0), iterations=long, scales=torch.full((len(inputs), 2), 5.0),
        )  # fmt: skip


def make_run(tmp_path, inferer, batch_size=2, writers=None, datalist=None, **options):
    cases, failures = find_cases(None if datalist else tmp_path / "in", datalist)
    folder = RunFolder(tmp_path / "out")
    folder.open(cases, failures)
    load = LoadImaged("image", reader=StudyReader(allow_synthetic=True), expanduser=False)
    preprocessing = Compose([load, ToGridd("image", size=SIZE, spacing=1.75)])
    dataset = CaseDataset(cases, preprocessing)
    loader = DataLoader(dataset, batch_sampler=PendingBatches(cases, folder, batch_size), collate_fn=collate_cases)
    explainer = Explainer(
        preprocessing, inferer, torch.nn.Identity(), AddDifferenced(), BrightnessClassifier(),
        writers=[NiftiWriter()] if writers is None else writers,
        **options,
    )  # fmt: skip
    return CounterfactualEvaluator(explainer, loader, val_handlers=[CaseWriter(folder)]), folder


def picture(height=64, width=80, level=60):
    rows, columns = np.mgrid[:height, :width]
    return (level + 40 * np.sin(rows / 7.0) * np.cos(columns / 9.0)).astype(np.uint8)


def write_png(path, array):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize("on_black", ["raise", "nan"])
def test_a_case_that_fails_does_not_stop_its_batch(tmp_path, on_black):
    write_png(tmp_path / "in" / "a.png", picture())
    write_png(tmp_path / "in" / "b.png", np.zeros((64, 80), np.uint8))
    write_png(tmp_path / "in" / "c.png", picture(level=70))
    evaluator, folder = make_run(tmp_path, Brighten(on_black=on_black), batch_size=3)
    evaluator.run()
    assert [item["case"] for item in evaluator.state.batch] == ["a", "c"]  # one for each output: metrics pair them
    assert [output["result"].case for output in evaluator.state.output] == ["a", "c"]
    assert folder.done() == ["a", "c"]
    (failure,) = folder.failures.values()
    assert failure.file.endswith("b.png")
    assert failure.stage == "infer"
    assert ("black" if on_black == "raise" else "not finite") in failure.reason


def test_a_target_that_no_case_can_reach_ends_the_run(tmp_path):
    for name in ("a", "b"):
        write_png(tmp_path / "in" / f"{name}.png", picture())
    evaluator, folder = make_run(
        tmp_path, UnchangedInferer(classifier=BrightnessClassifier(), target=5, progress=False)
    )
    with pytest.raises(ValueError, match="target=5 but the classifier has classes 0 to 1"):
        evaluator.run()
    assert not folder.failures


def test_a_file_that_breaks_while_reading_is_recorded(tmp_path):
    write_png(tmp_path / "in" / "a.png", picture())
    whole = (tmp_path / "in" / "a.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(whole[: len(whole) // 2])
    evaluator, folder = make_run(tmp_path, Brighten(on_black=None))
    evaluator.run()
    assert folder.done() == ["a"]
    (failure,) = folder.failures.values()
    assert failure.file.endswith("b.png")
    assert failure.stage == "read"


def test_a_failure_names_the_file_that_is_to_blame_and_the_cause_below_monais_words(tmp_path):
    case = Case("a", (Path("in/a.nii.gz"), Path("in/b")), mask=Path("masks/a.nii.gz"))

    def reason_of(error):
        def fail(item):
            raise error

        failure = CaseDataset([case], Compose([fail]))[0]
        assert failure.file == "in/a.nii.gz"
        return failure.reason

    assert reason_of(UnreadableImage("in/a.nii.gz", "is damaged", "")) == "is damaged"
    assert reason_of(UnreadableImage("masks/a.nii.gz", "is an empty mask", "")) == "its mask a.nii.gz is an empty mask"
    assert reason_of(UnreadableImage("in/b", "is truncated", "")) == "b is truncated"
    assert reason_of(ValueError("no range")) == "cannot be prepared (ValueError: no range)"


def test_an_interrupted_batch_is_computed_whole_and_the_rest_stays(tmp_path):
    for name in "abcde":
        write_png(tmp_path / "in" / f"{name}.png", picture())
    evaluator, folder = make_run(tmp_path, Brighten(on_black=None))
    for name in "abc":
        folder.complete(name, {"case": name, "mine": True})
    inferer = Brighten(on_black=None)
    folder._lock.close()
    evaluator, folder = make_run(tmp_path, inferer)
    evaluator.run()
    assert inferer.calls == [2, 1]
    assert folder.rows()[2] == {"case": "c", "mine": True}
    assert folder.done() == list("abcde")


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    write_png(tmp_path / "in" / "a.png", picture())
    evaluator, folder = make_run(tmp_path, Brighten(on_black=None))
    evaluator.run()
    folder._lock.close()
    inferer = Brighten(on_black=None)
    make_run(tmp_path, inferer)[0].run()
    assert inferer.calls == []


def test_a_case_that_cannot_be_written_costs_one_line_and_is_not_done(tmp_path):
    for name in "ab":
        write_png(tmp_path / "in" / f"{name}.png", picture())

    def full_disk(result, path):
        if result.case == "a":
            raise OSError("no space left on device")

    evaluator, folder = make_run(tmp_path, Brighten(on_black=None), writers=[NiftiWriter(), full_disk])
    evaluator.run()
    assert folder.done() == ["b"]
    (failure,) = folder.failures.values()
    assert failure.stage == "write"
    assert failure.file.endswith("a.png")
    assert "no space left" in failure.reason


def test_counterfactual_keeps_the_originals_detail(tmp_path):
    fine = picture()
    fine[::2] += 20  # one-pixel stripes, which the grid averages away
    write_png(tmp_path / "in" / "a.png", fine)
    evaluator, folder = make_run(tmp_path, Brighten(step=0.1, on_black=None))
    evaluator.run()
    result = nib.load(folder.case_dir("a") / "counterfactual.nii.gz").get_fdata()[:, :, 0].T
    difference = nib.load(folder.case_dir("a") / "difference.nii.gz").get_fdata()[:, :, 0].T
    inner = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(difference[inner], 0.1, atol=1e-6)  # 0.2 of the range [-1, 1]
    np.testing.assert_allclose(result[inner], fine[inner] / 255 + 0.1, atol=1e-6)


def test_trajectory_runs_from_the_original_to_the_counterfactual(tmp_path):
    write_png(tmp_path / "in" / "a.png", picture())
    evaluator, folder = make_run(tmp_path, Brighten(step=0.1, on_black=None))
    evaluator.run()
    case = folder.case_dir("a")
    trajectory = nib.load(case / "trajectory.nii.gz").get_fdata()
    assert trajectory.shape == (80, 64, 1, 3)
    np.testing.assert_allclose(trajectory[:, :, 0, 0].T, picture() / 255, atol=1e-6)
    np.testing.assert_array_equal(trajectory[..., -1], nib.load(case / "counterfactual.nii.gz").get_fdata())


@pytest.mark.parametrize("flip", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 0, 1)])
def test_nifti_comes_back_on_its_own_voxels(tmp_path, axes, flip):
    """Whatever way the plane is stored, original + difference must fit voxel by voxel."""
    stored = np.transpose(picture(48, 60).T[:, :, None], axes)
    affine = np.diag([-1.25 * flip[0], -0.75 * flip[1], 3.0, 1.0])[:, [*axes, 3]]
    affine[:3, 3] = [10, -20, 30]
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "in" / "a.nii.gz")
    evaluator, folder = make_run(tmp_path, Brighten(step=0.1, on_black=None))
    evaluator.run()
    for name in ("counterfactual", "difference", "trajectory"):
        image = nib.load(folder.case_dir("a") / f"{name}.nii.gz")
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        assert image.shape[:3] == stored.shape
        assert b"SYNTHETIC" in image.header["descrip"].tobytes()
    result = nib.load(folder.case_dir("a") / "counterfactual.nii.gz").get_fdata()
    difference = nib.load(folder.case_dir("a") / "difference.nii.gz").get_fdata()
    np.testing.assert_allclose(result, np.clip(stored / 255 + difference, 0, 1), atol=1e-6)
    assert difference.max() > 0.09


def test_spacing_from_a_table_does_not_move_a_nifti(tmp_path):
    (tmp_path / "in").mkdir()
    affine = np.diag([2.0, 2.0, 1.0, 1.0])  # stored mirrored and upside down
    nib.save(nib.Nifti1Image(picture(48, 60).T[:, :, None], affine), tmp_path / "in" / "a.nii.gz")
    (tmp_path / "table.csv").write_text("file,spacing_mm\nin/a.nii.gz,1.5 1.5\n")
    evaluator, folder = make_run(tmp_path, Brighten(on_black=None), datalist=tmp_path / "table.csv")
    evaluator.run()
    trajectory = nib.load(folder.case_dir(folder.done()[0]) / "trajectory.nii.gz")
    np.testing.assert_allclose(trajectory.get_fdata()[..., 0], picture(48, 60).T[:, :, None] / 255, atol=1e-6)
    np.testing.assert_allclose(trajectory.affine, affine)


def test_plane_without_third_axis_keeps_its_shape(tmp_path):
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(picture(48, 60).T, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "in" / "a.nii.gz")
    evaluator, folder = make_run(tmp_path, Brighten(on_black=None))
    evaluator.run()
    assert nib.load(folder.case_dir("a") / "counterfactual.nii.gz").shape == (60, 48)


def test_formats_of_one_phantom_agree_with_what_itk_reads(tmp_path):
    itk = pytest.importorskip("itk")
    from medcf.phantoms import write_demo

    write_demo(tmp_path / "in", count=3, formats=("png", "nifti", "dicom"), size=(64, 80), spacing=1.75)
    evaluator, folder = make_run(tmp_path, Brighten(on_black=None), batch_size=3)
    evaluator.run()
    rows = {row["format"]: row for row in folder.rows()}
    assert set(rows) == {"raster", "nifti", "dicom"}
    for row in rows.values():
        image = nib.load(folder.case_dir(row["case"]) / "counterfactual.nii.gz")
        assert image.shape == (80, 64, 1)
        first = nib.load(folder.case_dir(row["case"]) / "trajectory.nii.gz").get_fdata()[:, :, 0, 0]
        shown = read(row["file"])[0].numpy()
        np.testing.assert_allclose(first, shown, atol=1e-6)
    dicom = itk.imread(rows["dicom"]["file"])
    written = itk.imread(str(folder.case_dir(rows["dicom"]["case"]) / "counterfactual.nii.gz"))
    sizes = [list(image.GetLargestPossibleRegion().GetSize())[:2] for image in (written, dicom)]
    assert sizes[0] == sizes[1]
    # ITK does not know an ultrasound region's spacing; medcf does
    np.testing.assert_allclose(list(written.GetSpacing())[:2], [1.75, 1.75], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(written.GetDirection())[:2, :2], np.eye(2), atol=1e-6)


def test_scores_hold_what_the_method_reported(tmp_path):
    write_png(tmp_path / "in" / "a.png", picture())
    evaluator, folder = make_run(
        tmp_path,
        Brighten(on_black=None),
        segmenter=lambda image: torch.cat([-image, image], dim=1),
        novelty=lambda image: {"out_of_distribution": image.mean((1, 2, 3)) < 5, "novelty": image.mean((1, 2, 3))},
    )
    evaluator.run()
    row = json.loads((folder.case_dir("a") / "case.json").read_text())
    assert (row["label_before"], row["label_after"]) == (0, 1)
    assert row["confidences"] == [row["confidence_0"], row["confidence_1"], row["confidence_2"]]
    assert row["confidences"] == sorted(row["confidences"])
    assert row["flipped"] is True
    assert row["out_of_distribution"] is True
    assert row["spacing_row_mm"] is None
    assert row["scale"] == 5.0
    assert row["num_function_evaluations"] == 2


def test_prediction_can_be_inverted_by_monai(tmp_path):
    """`pred` carries the input's history, so MONAI's own way back works as well."""
    write_png(tmp_path / "in" / "a.png", picture())
    evaluator, _folder = make_run(tmp_path, Brighten(on_black=None))
    outputs = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.extend(engine.state.output))
    evaluator.run()
    to_grid = evaluator.data_loader.dataset.preprocessing.transforms[-1]
    native = to_grid.inverse({"image": outputs[0]["pred"]})["image"]
    assert native.shape == (1, 80, 64)


def test_region_is_the_part_of_the_matrix_under_the_grid(tmp_path):
    (tmp_path / "in").mkdir()
    affine = np.diag([-0.875, -0.875, 1.0, 1.0])
    nib.save(nib.Nifti1Image(picture(128, 160).T[:, :, None], affine), tmp_path / "in" / "a.nii.gz")
    results = []
    evaluator, _folder = make_run(
        tmp_path, Brighten(on_black=None), writers=[lambda result, path: results.append(result)]
    )
    evaluator.run()  # a grid of 32 x 40 at 1.75 mm is 64 x 80 native pixels
    left, top, right, bottom = results[0].region
    assert (top, bottom, left, right) == (32, 96, 40, 120)
    assert not results[0].difference[:, : top - 2].any()
    assert results[0].difference[left:right, top:bottom].min() > 0.25
