# SPDX-License-Identifier: Apache-2.0
"""The gate of a diffusion training, on Gaussian images whose best denoiser is known in closed form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from medcf.evaluation import Gate, Judge, check_gate, report_gate
from medcf.evaluation.gaussian_bound import GaussianBound
from medcf.schedulers import create_scheduler

SIZES = [(1, 4, 5), (1, 2, 3, 3)]


def gaussian_images(count, shape, seed):
    """Images whose pixels are correlated, small enough that nothing is clipped."""
    mixing = torch.randn(torch.Size(shape).numel(), 3, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    factors, grain = torch.randn(count, 3, generator=generator), torch.randn(count, len(mixing), generator=generator)
    return (0.1 + 0.03 * factors @ mixing.T + 0.02 * grain).reshape(count, *shape)


def dense_estimate(noisy, mean, covariance, alpha_bar):
    """m + √A C (A C + (1 - A) I)⁻¹ (x - √A m), the textbook's formula with whole matrices."""
    mixed = alpha_bar * covariance + (1 - alpha_bar) * torch.eye(len(mean), dtype=mean.dtype)
    residual = noisy.flatten(1).to(mean.dtype) - alpha_bar**0.5 * mean
    return (mean + alpha_bar**0.5 * torch.linalg.solve(mixed, residual.T).T @ covariance).reshape(noisy.shape)


class Estimator(nn.Module):
    """A network with prediction type "sample" that returns what a function says; it records its calls."""

    def __init__(self, estimate, num_classes=None):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.estimate, self.num_class_embeds, self.timesteps = estimate, num_classes, set()

    def forward(self, x, timesteps, class_labels=None):
        self.timesteps.add(int(timesteps[0]))
        return self.estimate(x, int(timesteps[0]), class_labels) + self.bias


class Rows:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index]}


@pytest.fixture
def make_gate(tmp_path):
    def make(estimate, shape=SIZES[0], num_classes=None, total=1000, **options):
        scheduler = create_scheduler(
            "ddim", num_train_timesteps=total, schedule="linear_beta", prediction_type="sample"
        )
        parts = {
            "network": Estimator(estimate, num_classes),
            "weights": None,
            "scheduler": scheduler,
            "training": Rows(gaussian_images(400, shape, 1)),
            "held_out": Rows(gaussian_images(64, shape, 2)),
            "path": tmp_path / "out" / "gate.json",
        }
        return Gate(**{**parts, **options})

    return make


def alpha_bar(t):
    return float(torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)[t])


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("components", [1, 3, 100])
def test_the_bound_is_the_linear_estimate_of_its_covariance(shape, components):
    images = gaussian_images(50, shape, 1)
    flat = images.flatten(1).double()
    bound = GaussianBound.fit(images.clone(), components)
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))  # ascending
    kept = min(components, flat.shape[1])
    rest = values[:-kept].mean() if kept < len(values) else 0.0
    spectrum = torch.cat([torch.full_like(values[:-kept], float(rest)), values[-kept:]])
    covariance = vectors @ spectrum.diag() @ vectors.T
    noisy = torch.randn(7, *shape, generator=torch.Generator().manual_seed(3))
    for level in (0.99, 0.3, 0.001):
        expected = dense_estimate(noisy, flat.mean(0), covariance, level)
        torch.testing.assert_close(bound(noisy, level).double(), expected, atol=2e-5, rtol=1e-4)


def test_components_that_few_images_do_not_have_are_left_out():
    bound = GaussianBound.fit(gaussian_images(4, SIZES[0], 1), 60)
    assert (len(bound.variances), bound.rest) == (3, pytest.approx(0.0, abs=1e-9))
    with pytest.raises(ValueError, match="at least 2 training images, not 1"):
        GaussianBound.fit(gaussian_images(1, SIZES[0], 1))


@pytest.mark.parametrize("shape", SIZES)
def test_a_network_equal_to_the_bound_has_the_ratio_one(shape, make_gate):
    flat = gaussian_images(400, shape, 1).flatten(1).double()
    mean, covariance = flat.mean(0), torch.cov(flat.T)
    gate = make_gate(lambda x, t, _: dense_estimate(x, mean, covariance, alpha_bar(t)).float(), shape)
    ratios = [row["ratio"] for row in gate.run()["denoising"]]
    assert ratios == pytest.approx([1.0] * 8, abs=1e-3)


@pytest.mark.long
def test_a_network_that_returns_the_mean_has_the_ratio_of_the_variances(make_gate):
    training = 0.3 * torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    held_out = 0.3 * torch.randn(2000, 1, 2, 2, generator=torch.Generator().manual_seed(2)).clamp(-3, 3)
    options = {"num_images": 2000, "num_training_images": 4000, "batch_size": 500}
    gate = make_gate(lambda x, *_: 0 * x, training=Rows(training), held_out=Rows(held_out), **options)
    rows = gate.run()["denoising"]
    for row in rows:
        level = alpha_bar(row["t"])
        assert row["error"] == pytest.approx(0.09, rel=0.05)
        assert row["ratio"] == pytest.approx((level * 0.09 + 1 - level) / (1 - level), rel=0.08)
    assert [row["passed"] for row in rows] == [False] * 4 + [True] * 4  # 1.08 at t = 450, 1.02 at t = 600


def test_the_error_is_that_of_the_clipped_prediction(make_gate):
    gate = make_gate(lambda x, *_: torch.full_like(x, 50.0))
    images = gate.held_out.images
    errors = [row["error"] for row in gate.run()["denoising"]]
    assert errors == pytest.approx([float(((1 - images) ** 2).mean())] * 8, rel=1e-5)


def test_the_verdict_follows_the_limits(make_gate, capsys):
    ratio = {row["t"]: row["ratio"] for row in make_gate(lambda x, *_: 0 * x).run()["denoising"]}
    gate = make_gate(lambda x, *_: 0 * x, limits={"300": ratio[300] * 1.5, "450": ratio[450] * 1.5})
    figures = gate.run()
    assert (figures["passed"], figures["verdict"], figures["weak"]) == (True, "PASS", [])
    assert capsys.readouterr().out.endswith("\nPASS\n")
    gate.limits = {"300": ratio[300] * 0.99, "450": ratio[450] * 1.5, "600": 0.0}
    figures = gate.run()
    assert not figures["passed"]
    assert [row["passed"] for row in figures["denoising"]] == [False, True, False]
    printed = capsys.readouterr().out
    assert printed.endswith("\nFAIL: the x0 error is above its limit at t = 300, 600\n")
    low, high = figures["denoising"][0]["interval"]
    assert f"{ratio[300]:.3f}   [{low:.3f}, {high:.3f}] " in printed
    assert [line.split()[-1] for line in printed.splitlines()[2:5]] == ["FAIL", "pass", "FAIL"]
    assert json.loads(gate.path.read_text()) == figures


def test_the_error_is_measured_on_the_branch_without_a_class(make_gate):
    def estimate(x, t, labels):
        return torch.where((labels == 2).view(-1, 1, 1, 1), 0.1, 0.9).expand_as(x)

    gate = make_gate(estimate, num_classes=3, null_class=2)
    error = gate.run()["denoising"][0]["error"]
    assert error == pytest.approx(float(((0.1 - gate.held_out.images) ** 2).mean()), rel=1e-5)


def test_noise_levels_scale_with_the_schedule_and_stay_on_trained_steps(make_gate):
    gate = make_gate(lambda x, *_: 0 * x, total=500)
    assert [row["t"] for row in gate.run()["denoising"]] == [25, 75, 150, 225, 300, 375, 425, 475]
    steps = make_gate(lambda x, *_: 0 * x, matched_steps=10)
    rows = steps.run()["denoising"]
    steps.scheduler.set_timesteps(10)
    assert {row["t"] for row in rows} <= set(steps.scheduler.kept)
    assert [row["limit"] for row in rows if abs(row["t"] - 600) < 60] == [1.05]


def test_images_are_taken_evenly_from_a_dataset_sorted_by_class(make_gate):
    images = torch.cat([torch.full((50, 1, 4, 5), -0.5), torch.full((50, 1, 4, 5), 0.5)])
    gate = make_gate(lambda x, *_: 0 * x + 0.5, held_out=Rows(images), num_images=10)
    figures = gate.run()
    assert figures["images"] == 10
    assert figures["denoising"][0]["error"] == pytest.approx(0.5)  # half of them are 1 off


def test_the_weights_are_loaded_into_a_copy(make_gate, tmp_path):
    network = Estimator(lambda x, *_: 0 * x)
    trained = Estimator(lambda x, *_: 0 * x)
    trained.bias.data.fill_(0.1)
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    gate = make_gate(None, network=network, weights=tmp_path / "model.pt")
    error = gate.run()["denoising"][0]["error"]
    assert error == pytest.approx(float(((0.1 - gate.held_out.images) ** 2).mean()), rel=1e-5)
    assert network.bias.tolist() == [0.0]
    assert network.bias.requires_grad
    gate.weights = tmp_path / "missing.pt"
    with pytest.raises(FileNotFoundError, match=r"missing\.pt does not exist.*--export_path"):
        gate.run()


class Above(nn.Module):
    """Recognizes class 1 by a mean above a threshold."""

    def __init__(self, threshold=0.0):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images):
        above = images.flatten(1).mean(1) - self.threshold
        return torch.stack([-above, above], dim=1)


class Brightness(nn.Module):
    def forward(self, images):
        return {"quality": images.flatten(1).mean(1)}


def class_images(x, t, labels):
    """The perfect prediction for classes whose images are all -0.3 and all 0.3; no class is 0."""
    return torch.tensor([-0.3, 0.3, 0.0])[labels].view(-1, 1, 1, 1).expand_as(x)


@pytest.fixture
def class_gate(make_gate):
    def make(**options):
        named = {"class_names": ["dark", "bright"], "aims": [1.0, 0.6], "null_class": 2, "num_samples": 5}
        return make_gate(
            class_images, num_classes=3, limits={}, batch_size=2, num_inference_steps=4, **{**named, **options}
        )

    return make


def shares(figures, judge):
    return [row["share"] for row in figures["samples"][judge]]


def test_samples_are_recognized_by_those_who_can(class_gate, capsys):
    judges = {"f": Judge(Above(0.0)), "never": Judge(Above(5.0)), "oracle": Judge(Brightness(), threshold=0.55)}
    figures = class_gate(judges=judges).run()
    assert shares(figures, "f") == [1.0, 1.0]
    assert shares(figures, "never") == [1.0, 0.0]
    assert shares(figures, "oracle") == [1.0, 1.0]  # with guidance 2 the brighter class is 0.6
    assert figures["failures"] == ["never recognizes 0.00 of the bright samples, less than 0.60"]
    printed = capsys.readouterr().out
    assert "Share of 5 samples per class that are recognized, 95 % interval (guidance scale 2, 4 steps)" in printed
    assert "  never, bright: 0.00 [0.00, 0.52], at least 0.60  FAIL" in printed
    weak = class_gate(judges={"oracle": Judge(Brightness(), threshold=0.55)}, guidance_scale=1.0)
    assert shares(weak.run(), "oracle") == [1.0, 0.0]


def test_samples_of_a_network_trained_on_few_steps_take_these(class_gate):
    gate = class_gate(judges={"f": Judge(Above())}, matched_steps=5)
    gate.run()
    gate.scheduler.set_timesteps(5)
    calls = set()
    gate.network.estimate = lambda x, t, labels: calls.add(t) or class_images(x, t, labels)
    gate.run()
    assert calls == set(gate.scheduler.kept)


def test_a_judge_that_cannot_judge_is_left_out_and_said_so(class_gate, make_gate, tmp_path, capsys):
    torch.save(Above(5.0).state_dict(), tmp_path / "f.pt")
    judges = {
        "f": Judge(Above(0.0), {"": tmp_path / "f.pt"}),
        "absent": Judge(Above(), {"": tmp_path / "absent.pt"}),
        "misfit": Judge(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), {"1": None}),
    }
    figures = class_gate(judges=judges).run()
    assert list(figures["samples"]) == ["f"]
    assert shares(figures, "f") == [1.0, 0.0]  # by the weights of the file
    printed = capsys.readouterr().out
    assert f"absent was not asked: The weights file {tmp_path / 'absent.pt'} does not exist." in printed
    assert "misfit was not asked, because it does not fit these images" in printed
    alone = class_gate(judges={"absent": judges["absent"]}).run()
    assert alone["passed"]
    assert alone["skipped"][-1] == "The class samples were not checked: there is no classifier to recognize them."
    nameless = make_gate(lambda x, *_: 0 * x, judges={"f": judges["f"]}).run()
    assert nameless["skipped"] == ["The class samples were not checked: the network knows no classes."]


def test_a_gate_that_fails_to_run_does_not_fail_its_training(make_gate, tmp_path, caplog):
    gate = make_gate(lambda x, *_: 0 * x, weights=tmp_path / "missing.pt")
    assert report_gate(gate) == {}
    assert "The gate could not be measured; the training is complete" in caplog.text
    with pytest.raises(FileNotFoundError):
        check_gate(gate)
    assert report_gate(None) == report_gate(False) == {}  # of an overlay, and by --gate False
    with pytest.raises(ValueError, match=r"only train\.json"):
        check_gate(None)
    gate.weights = None
    assert report_gate(gate)["denoising"] == check_gate(gate)["denoising"]


def test_a_network_that_diverged_fails_and_the_verdict_is_written(make_gate):
    gate = make_gate(lambda x, t, labels: x * float("nan"))
    figures = gate.run()
    assert not figures["passed"]
    stored = json.loads(Path(gate.path).read_text())
    assert stored["passed"] is False
    assert stored["denoising"][0]["ratio"] is None
