# SPDX-License-Identifier: Apache-2.0
"""The handlers of the trainings."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.engines import Evaluator, SupervisedTrainer
from PIL import Image
from torch import nn

from medcf.sampling import PixelSpace
from medcf.schedulers import RespacedDDIMScheduler, create_scheduler
from medcf.training.handlers import (
    GradientClipping,
    LossCurve,
    MetricsFile,
    SampleGrid,
    TrainingProgress,
    Validation,
    loss_of,
)


def trainer(network, handlers, scale=1.0):
    data = [{"image": torch.full((2, 1), scale), "label": torch.zeros(2, 1)}] * 3
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    return SupervisedTrainer(
        torch.device("cpu"), 1, data, network, optimizer, nn.MSELoss(), train_handlers=handlers, decollate=False
    )


def test_the_step_is_clipped_to_the_norm():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(5.0)
    trainer(network, [GradientClipping(network, max_norm=0.1)]).run()
    assert network.weight.item() == pytest.approx(5.0 - 3 * 0.1, abs=1e-4)


def test_a_gradient_that_is_not_finite_stops_the_training():
    network = nn.Linear(1, 1, bias=False)
    with pytest.raises(FloatingPointError, match="iteration 1"):
        trainer(network, [GradientClipping(network)], scale=float("inf")).run()


def test_the_loss_curve_is_complete_and_goes_on(tmp_path):
    network = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.25)
    before = LossCurve(tmp_path / "loss.csv", optimizer)
    trainer(network, [before]).run()
    after = LossCurve(tmp_path / "loss.csv", optimizer)
    after.load_state_dict(before.state_dict())
    trainer(network, [after]).run()
    with (tmp_path / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["1", "2", "3", "1", "2", "3"]
    assert {row["learning_rate"] for row in rows} == {"0.25"}
    assert float(rows[0]["loss"]) == before.rows[0][1] > 0


def test_the_loss_is_read_from_either_kind_of_output():
    assert loss_of({"loss": torch.tensor(2.0, requires_grad=True)}) == loss_of([{"loss": 2.0}]) == 2.0


class ClassPainter(nn.Module):
    """Denoises every image to a gray value that its class label gives."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.table = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000), 0)

    def forward(self, x, timesteps, context=None, class_labels=None):
        a = self.table[timesteps.long()].reshape(-1, 1, 1, 1)
        clean = (class_labels.float() - 1).reshape(-1, 1, 1, 1)
        return (x - a.sqrt() * clean) / (1 - a).sqrt()


def test_the_sample_grid_has_a_row_for_each_class(tmp_path):
    grid = SampleGrid(
        ClassPainter(), RespacedDDIMScheduler(1000), tmp_path, (1, 4, 6), columns=2, num_inference_steps=5, every=2
    )
    engine = Engine(lambda engine, batch: None)
    grid.attach(engine)
    engine.run([0], max_epochs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples_0000002.png", "samples_0000003.png"]
    pixels = np.asarray(Image.open(tmp_path / "samples_0000003.png")).astype(int)
    assert pixels.shape == (12, 12)
    for row, expected in enumerate((0, 128, 255)):
        assert abs(pixels[4 * row : 4 * row + 4] - expected).max() <= 1


def test_a_preview_that_fails_is_logged_and_the_training_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("where the folder of the previews should be")
    grid = SampleGrid(
        ClassPainter(), RespacedDDIMScheduler(1000), tmp_path / "file", (1, 4, 6), num_inference_steps=2, every=1
    )
    engine = Engine(lambda engine, batch: None)
    grid.attach(engine)
    engine.run([0], max_epochs=2)
    assert engine.state.epoch == 2
    assert "No preview for iteration 1; training continues." in caplog.text


class Validator(Evaluator):
    """Notes when it is run."""

    def __init__(self, engine):
        self.engine, self.runs = engine, []

    def run(self, global_epoch=1):
        self.runs.append(self.engine.state.epoch)


@pytest.mark.parametrize(("epochs", "validated"), [(1, [1]), (2, [2]), (5, [2, 4, 5]), (6, [2, 4, 6])])
def test_a_training_is_validated_at_its_end_whatever_the_interval(epochs, validated):
    engine = Engine(lambda engine, batch: None)
    validator = Validator(engine)
    Validation(validator, interval=2).attach(engine)
    engine.run([0] * 3, max_epochs=epochs)
    assert validator.runs == validated


def test_the_metrics_of_the_last_validation_are_written_and_kept(tmp_path):
    evaluator, engine = Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.state.metrics = {"val_loss": torch.tensor(0.5)}
    MetricsFile(evaluator, tmp_path / "metrics.json").attach(engine)
    engine.run([0], max_epochs=2)
    evaluator.state.metrics = {}  # started again after the end: nothing was validated
    again = Engine(lambda *_: None)
    MetricsFile(evaluator, tmp_path / "metrics.json").attach(again)
    again.run([0], max_epochs=1)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"] == {"val_loss": 0.5}
    assert record["iterations"] == 2


def test_the_progress_bar_counts_all_iterations_and_a_resumed_one_goes_on(capfd):
    def run(epochs, iteration=0):
        engine = Engine(lambda engine, batch: {"loss": 0.25})
        TrainingProgress("head").attach(engine)
        if iteration:
            engine.load_state_dict({"iteration": iteration, "epoch_length": 3, "max_epochs": epochs})
        engine.run([0] * 3, max_epochs=epochs)
        return capfd.readouterr().err

    assert "[6/6] 100%" in run(2)
    resumed = run(4, iteration=6)
    assert "[12/12] 100%" in resumed
    assert "loss 0.2500" in resumed


def test_metrics_that_are_not_finite_are_null(tmp_path):
    evaluator, engine = Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.state.metrics = {"val_loss": float("nan")}
    MetricsFile(evaluator, tmp_path / "metrics.json").attach(engine)
    engine.run([0], max_epochs=1)
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == {"val_loss": None}


def test_prompts_are_previewed_in_images_one_row_each(tmp_path):
    class Text(torch.nn.Module):
        def tokenize(self, prompts):
            return torch.tensor([[len(prompt)] for prompt in prompts])

    class Prompted(torch.nn.Module):
        """Predicts noise such that the image is its prompt's length, in hundredths."""

        def __init__(self):
            super().__init__()
            self.weight, self.text_encoder = torch.nn.Parameter(torch.zeros(1)), Text()

        def forward(self, x, timesteps, context):
            assert not context.is_floating_point()
            return (context / 100).reshape(-1, 1, 1, 1).expand_as(x)

    class Doubled(PixelSpace):
        def decode(self, sample):
            return 2 * sample

    scheduler = create_scheduler("ddim", num_train_timesteps=1000, schedule="linear_beta", prediction_type="sample")
    grid = SampleGrid(
        Prompted(), scheduler, tmp_path, (1, 4, 4), prompts=["a" * 10, "b" * 30], space=Doubled(), columns=2
    ).sample()
    assert grid.shape == (8, 8)
    expected = [(2 * value + 1) * 127.5 for value in (0.1, 0.3)]
    assert grid[:4].mean() == pytest.approx(expected[0], abs=1)
    assert grid[4:].mean() == pytest.approx(expected[1], abs=1)
