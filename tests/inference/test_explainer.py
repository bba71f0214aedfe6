# SPDX-License-Identifier: Apache-2.0
"""One road for every image: whatever it is read by, alone, in a batch or in a run, the result is the same."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.metrics import Average
from monai.data import DataLoader as MonaiDataLoader
from monai.data import Dataset
from monai.transforms import Compose, LoadImage, LoadImaged
from PIL import Image

from medcf.data import Case, StudyReader, find_cases, read
from medcf.inference import (
    CaseResult,
    CaseWriter,
    CounterfactualEvaluator,
    Explainer,
    NiftiWriter,
    RunFolder,
    finish_run,
)
from medcf.inference.cases import case_loader
from medcf.inferers.counterfactual import Counterfactual
from medcf.runtime.error_report import FilesFailed
from medcf.runtime.errors import Failure, UnreadableImage
from medcf.transforms import AddDifferenced, ToGridd


class Brightness(torch.nn.Module):
    """Class 1 is a picture whose mean is above 0."""

    def forward(self, image):
        mean = image.mean((1, 2, 3))
        return torch.stack([-10 * mean, 10 * mean], dim=1)


class Brighten:
    """Adds 0.2 to every image."""

    def __init__(self):
        self.calls = []

    def explain(self, inputs, network, sample_ids=None, target=None):
        self.calls.append(len(sample_ids))
        trajectory = torch.stack([inputs, inputs + 0.2], dim=1)
        hits = torch.stack([Brightness()(step).softmax(1)[:, 1] for step in (inputs, inputs + 0.2)], dim=1)
        ones = torch.ones(len(inputs), dtype=torch.long)
        wanted = ones * (1 if target is None else target)
        return Counterfactual(
            image=inputs + 0.2, trajectory=trajectory, confidences=hits, target=wanted,
            num_function_evaluations=ones, flipped=hits[:, -1] > 0.5, unchanged=ones < 0, scale=ones * 5.0,
            iterations=ones, scales=hits[:, 1:],
        )  # fmt: skip


def make_explainer(**options):
    reader = LoadImaged("image", reader=StudyReader(), expanduser=False)
    steps = Compose([reader, ToGridd("image", size=(32, 40), spacing=1.75)])
    defaults = {"writers": [NiftiWriter()], "batch_size": 2, "manifest": {"config": {"target": 1}, "seed": 3}}
    options = {"classifier": Brightness(), **defaults, **options}
    return Explainer(steps, Brighten(), torch.nn.Identity(), AddDifferenced(), **options)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for index, name in enumerate("abcd"):
        rows, columns = np.mgrid[:64, :80]
        pixels = 90 + 10 * index + 40 * np.sin(rows / 7.0) * np.cos(columns / 9.0) + columns / 4
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


def break_file(path):
    path.write_bytes(path.read_bytes()[:200])


def scores(row):
    return {name: value for name, value in row.items() if name not in ("seconds", "format", "confidences")}


@pytest.mark.parametrize("form", ["text", "case", "list", "item", "read", "monai", "prepared"])
def test_an_image_gives_the_same_result_whatever_it_is_given_as(folder, form):
    path, explainer = folder / "a.png", make_explainer()
    expected = explainer(path)
    source = {
        "text": lambda: str(path),
        "case": lambda: Case("a", (path,)),
        "list": lambda: [path],
        "item": lambda: Case("a", (path,)).item(),
        "read": lambda: read(path),
        # as MONAI's reader of pictures gives it: columns first, values up to 255
        "monai": lambda: LoadImage(image_only=True, ensure_channel_first=True)(path),
        "prepared": lambda: explainer.prepare(path),
    }[form]()
    result = explainer(source)
    assert (result.case, result.row["file"]) == ("a", str(path))
    unit = 255 if form == "monai" else 1
    for name in ("original", "counterfactual"):
        np.testing.assert_allclose(getattr(result, name) / unit, getattr(expected, name), atol=1e-6)
    np.testing.assert_allclose(result.difference, expected.difference, atol=1e-6)
    np.testing.assert_allclose(result.trajectory / unit, expected.trajectory, atol=1e-6)
    assert result.original.shape == (80, 64)
    assert result.spacing is None
    assert scores(result.row) == pytest.approx(scores(expected.row), abs=1e-6)


def test_the_target_of_a_call_reaches_the_method(folder):
    assert make_explainer()(folder / "a.png").row["target"] == 1
    assert make_explainer()(folder / "a.png", target=0).row["target"] == 0


def test_a_classifier_in_training_mode_keeps_its_running_statistics(folder):
    torch.manual_seed(0)
    classifier = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Linear(32 * 40, 2)).train()
    before = classifier[0].running_mean.clone()
    make_explainer(classifier=classifier)(folder / "a.png")
    assert torch.equal(classifier[0].running_mean, before)
    assert classifier.training


def test_one_bad_file_of_a_batch_leaves_the_others_in_their_order(folder):
    break_file(folder / "b.png")
    explainer = make_explainer()
    results = explainer.batch([folder / f"{name}.png" for name in "abc"] + [Failure("x", "read", "is gone", "Wait.")])
    assert [type(result) for result in results] == [CaseResult, Failure, CaseResult, Failure]
    assert [results[0].case, results[2].case] == ["a", "c"]
    assert explainer.inferer.calls == [2]
    assert results[1].file == str(folder / "b.png")
    assert results[1].stage == "read"
    assert results[3].reason == "is gone"
    with pytest.raises(UnreadableImage, match=r"b\.png"):
        explainer(folder / "b.png")


def test_an_image_that_is_not_finite_is_refused(folder):
    image = read(folder / "a.png")
    image[0, 3, 3] = float("nan")
    failure = make_explainer().prepare(image)
    assert isinstance(failure, Failure)
    assert failure.stage == "read"


def test_a_run_goes_on_where_it_was_left_and_yields_what_failed(folder, tmp_path):
    break_file(folder / "c.png")
    explainer = make_explainer()
    run = explainer.run(folder, tmp_path / "out")
    first = [next(run), next(run)]
    run.close()
    assert explainer.inferer.calls == [2]
    assert [result.case for result in first] == ["a", "b"]
    kept = (tmp_path / "out" / "a" / "case.json").read_bytes()
    del run
    explainer = make_explainer()
    found = list(explainer.run(folder, tmp_path / "out"))
    assert explainer.inferer.calls == [1]
    assert [each.case for each in found if isinstance(each, CaseResult)] == ["d"]
    assert [each.file for each in found if isinstance(each, Failure)] == [str(folder / "c.png")]
    assert (tmp_path / "out" / "a" / "case.json").read_bytes() == kept
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["cases"] == 3
    with pytest.raises(ValueError, match="config changed: target"):
        list(make_explainer(manifest={"config": {"target": 0}}).run(folder, tmp_path / "out"))
    anew = make_explainer(manifest={"config": {"target": 0}}).run(folder, tmp_path / "out", overwrite=True)
    assert len(list(anew)) == 4


def test_a_file_that_is_no_image_is_yielded_as_a_failure_first(folder, tmp_path):
    (folder / "e.png").write_text("no picture")
    found = list(make_explainer().run(folder, tmp_path / "out"))
    assert found[0].file == str(folder / "e.png")
    assert [each.case for each in found[1:]] == ["a", "b", "c", "d"]


def test_a_run_writes_what_the_evaluator_writes(folder, tmp_path):
    break_file(folder / "c.png")
    list(make_explainer().run(folder, tmp_path / "one"))
    explainer = make_explainer()
    cases, failures = find_cases(folder)
    run_folder = RunFolder(tmp_path / "two", **explainer.manifest)
    run_folder.open(cases, failures)
    loader = case_loader(cases, explainer.preprocessing, run_folder, batch_size=2)
    CounterfactualEvaluator(explainer, loader, val_handlers=[CaseWriter(run_folder)]).run()
    with pytest.raises(FilesFailed):
        finish_run(run_folder)
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("scores.csv", "failures.csv"):
        tables = [list(csv.DictReader((output / name).open())) for output in (one, two)]
        for table in tables:
            for row in table:
                row.pop("seconds", None)
        assert tables[0] == tables[1]
        assert tables[0]
    summaries = [json.loads((output / "summary.json").read_text()) for output in (one, two)]
    for summary in summaries:
        summary.pop("mean_seconds")
        summary.pop("seconds_of_this_session")
    assert summaries[0] == summaries[1]
    names = [sorted(str(path.relative_to(output)) for path in output.rglob("*")) for output in (one, two)]
    assert names[0] == names[1]
    for name in ("counterfactual", "difference", "trajectory"):
        images = [nib.load(output / "d" / f"{name}.nii.gz").get_fdata() for output in (one, two)]
        np.testing.assert_array_equal(*images)
    manifests = [json.loads((output / "manifest.json").read_text()) for output in (one, two)]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    assert manifests[0]["failed"] == manifests[1]["failed"] == [str(folder / "c.png")]


def test_an_explainer_pickles(folder):
    explainer = make_explainer()
    copy = pickle.loads(pickle.dumps(explainer))
    np.testing.assert_array_equal(copy(folder / "a.png").counterfactual, explainer(folder / "a.png").counterfactual)


def test_saving_replaces_its_own_files_and_never_somebody_elses(folder, tmp_path):
    result = make_explainer()(folder / "a.png")
    for _ in range(2):
        saved = result.save(tmp_path / "out")
    assert saved == tmp_path / "out" / "a"
    assert json.loads((saved / "case.json").read_text()) == result.row
    (saved / "mine.txt").write_text("mine")
    result.save(tmp_path / "out")
    assert (saved / "mine.txt").read_text() == "mine"
    for name in ("difference.nii.gz", "case.json"):
        foreign = tmp_path / name.split(".")[0] / "a" / name
        foreign.parent.mkdir(parents=True)
        foreign.write_text("mine")
        with pytest.raises(FileExistsError, match=f"{name} is in the way"):
            result.save(foreign.parents[1])
        assert [path.name for path in foreign.parent.iterdir()] == [name]
        assert foreign.read_text() == "mine"


def test_a_writer_that_fails_costs_one_line_and_the_run_goes_on(folder, tmp_path):
    def broken(result, path):
        if result.case == "b":
            raise KeyError("label")

    found = list(make_explainer(writers=[NiftiWriter(), broken]).run(folder, tmp_path / "out"))
    assert [each.case for each in found if isinstance(each, CaseResult)] == ["a", "c", "d"]
    (failure,) = (each for each in found if isinstance(each, Failure))
    assert failure == replace(failure, file=str(folder / "b.png"), stage="write")
    assert "KeyError" in failure.reason
    assert not (tmp_path / "out" / "b" / "case.json").exists()


def test_monais_own_loader_drives_the_evaluator_with_a_metric(folder):
    explainer = make_explainer()
    cases = [replace(case, columns={"label": index % 2}) for index, case in enumerate(find_cases(folder)[0])]
    loader = MonaiDataLoader(Dataset([case.item() for case in cases], explainer.preprocessing), batch_size=3)
    metric = Average(lambda output: float(np.mean([(case["pred"] - case["image"]).mean().item() for case in output])))
    evaluator = CounterfactualEvaluator(explainer, loader, key_val_metric={"brightened": metric})
    evaluator.run()
    assert explainer.inferer.calls == [3, 1]
    assert evaluator.state.metrics["brightened"] == pytest.approx(0.2, abs=1e-6)
    assert evaluator.state.best_metric == evaluator.state.metrics["brightened"]
    (output,) = evaluator.state.output
    assert int(output["label"]) == 1
    alone = make_explainer()(cases[3])
    assert output["result"].row["file"] == str(folder / "d.png")
    np.testing.assert_allclose(output["result"].counterfactual, alone.counterfactual, atol=1e-6)
    assert scores(output["result"].row) == pytest.approx(scores(alone.row), abs=1e-6)


def test_noise_depends_on_what_an_image_holds_and_not_on_its_name(folder):
    class Noisy(Brighten):
        def explain(self, inputs, network=None, sample_ids=(), target=None):
            self.names = list(sample_ids)
            return super().explain(inputs, network, sample_ids, target)

    explainer = make_explainer()
    explainer.inferer = Noisy()
    shutil.copy(folder / "a.png", folder / "twin.png")
    explainer.batch([folder / "a.png", folder / "twin.png", folder / "b.png", read(folder / "a.png")])
    names = explainer.inferer.names
    assert names[0] == names[1] == names[3]
    assert names[0] != names[2]


def test_a_target_may_be_called_by_its_name(folder):
    explainer = make_explainer(class_names=["NSP", "SP"])
    assert explainer(folder / "a.png", target="sp").row["target"] == 1
    assert explainer(folder / "a.png", target="NSP").row["target"] == 0


def test_an_error_of_any_kind_costs_one_line(folder):
    class Failing(Brighten):
        def explain(self, inputs, network=None, sample_ids=(), target=None):
            if len(inputs) > 1 or inputs.mean() > -0.18:  # as of b
                raise KeyError("some library's")
            return super().explain(inputs, network, sample_ids, target)

    explainer = make_explainer()
    explainer.inferer = Failing()
    results = explainer.batch([folder / "a.png", folder / "b.png"])
    assert [type(result) for result in results] == [CaseResult, Failure]
    assert (results[1].stage, results[1].reason) == ("infer", 'KeyError: "some library\'s"')


def test_several_seeds_show_their_spread_and_leave_the_result_of_the_first(folder, tmp_path):
    class Shifted(Brighten):
        """Adds a shift that its seed decides."""

        seed = 2

        def explain(self, inputs, network=None, sample_ids=(), target=None):
            found = super().explain(inputs, network, sample_ids, target)
            image = inputs + 0.1 * self.seed
            return replace(found, image=image, flipped=torch.full((len(inputs),), self.seed > 2))

    explainer = make_explainer()
    explainer.inferer, explainer.seeds = Shifted(), 4
    results = explainer.batch([folder / "a.png", folder / "b.png"])
    shifts = 0.1 * np.arange(2, 6) / 2  # in fractions of the range, which is 2 on the grid
    for result in results:
        inner = (slice(4, -4), slice(4, -4))  # both run to zero at the border
        np.testing.assert_allclose(result.difference[inner], shifts[0], atol=1e-6)
        np.testing.assert_allclose(result.spread[inner], np.std(shifts, ddof=1), atol=1e-6)
        np.testing.assert_allclose(result.expected_difference[inner], np.mean(shifts), atol=1e-6)
        np.testing.assert_allclose((result.expected - result.original)[inner], np.mean(shifts), atol=1e-6)
        assert result.row["mean_expected_difference"] == pytest.approx(np.mean(shifts), rel=0.05)
        assert 0 <= result.row["confidence_expected"] <= 1
        assert result.row["seeds_flipped"] == 0.75
        assert result.row["num_seeds"] == 4
        assert result.row["num_function_evaluations"] == 4  # one for each seed
        assert result.row["mean_spread"] == pytest.approx(np.std(shifts, ddof=1), rel=0.05)
    saved = results[0].save(tmp_path / "out")
    written = nib.load(saved / "spread.nii.gz").get_fdata()[..., 0]
    np.testing.assert_allclose(written, results[0].spread, atol=1e-6)
    written = nib.load(saved / "expected_difference.nii.gz").get_fdata()[..., 0]
    np.testing.assert_allclose(written, results[0].expected_difference, atol=1e-6)
    assert b"SYNTHETIC" in nib.load(saved / "expected.nii.gz").header["descrip"].item()
    assert explainer.inferer.seed == 2
    explainer.seeds = 1
    assert explainer(folder / "a.png").spread is None


def test_several_seeds_need_a_method_that_has_one_and_are_whole():
    with pytest.raises(ValueError, match=r"seeds=1\.5: use 1, or a whole number"):
        make_explainer(seeds=1.5)
    with pytest.raises(ValueError, match="more with a method that has a seed"):
        make_explainer(seeds=3)
