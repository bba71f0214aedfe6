# SPDX-License-Identifier: Apache-2.0
"""What every registered metric promises: a direction, an example, an interval, who entered, and use from Ignite."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric

import medcf.metrics
from medcf.guidance import PerceptualFeatures
from medcf.metrics.base import Counts
from medcf.registry import METRICS

for module in pkgutil.iter_modules(medcf.metrics.__path__):
    importlib.import_module(f"medcf.metrics.{module.name}")

BUILT_IN = sorted(name for name in METRICS.names if METRICS[name].__module__.startswith("medcf."))
# Detectors are registered, too; they score single images and accumulate nothing.
CUMULATIVE = [name for name in BUILT_IN if issubclass(METRICS[name], CumulativeIterationMetric)]
# Their aggregate is a dictionary, which has no one interval.
SEVERAL_FIGURES = {"structure_dice", "class_distances"}

generator = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 12, 2, generator=generator)
LOGITS[1, :, 0] += 2  # most inputs are not of the target class, so that they count
SCORES = torch.rand(2, 12, generator=generator)
FEATURES = torch.randn(2, 12, 4, generator=generator)
IMAGES = torch.rand(2, 12, 1, 24, 28, generator=generator) * 2 - 1
with torch.random.fork_rng():
    torch.manual_seed(0)  # with this one, half of the images are not of the target class, enough for an interval
    CLASSIFIER = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24 * 28, 2)).eval()


def metric(name: str, **options: Any) -> Callable[[], CumulativeIterationMetric]:
    return lambda: METRICS[name](**options)


# What a metric is called with, (y_pred, y), for those that need no more than that.
IN_IGNITE = {
    "flip_ratio": (metric("flip_ratio"), LOGITS),
    "confidence_change": (metric("confidence_change"), LOGITS),
    "bounded_kl": (metric("bounded_kl"), LOGITS),
    "mean_quality_difference": (metric("mean_quality_difference"), SCORES),
    "mean": (metric("mean"), SCORES),
    "balanced_accuracy": (metric("balanced_accuracy", threshold=0.5), (SCORES[0], (SCORES[1] > 0.5).long())),
    "cout": (metric("cout", classifier=CLASSIFIER, num_steps=4), IMAGES),
    "volume_change": (metric("volume_change"), SCORES),
    "mse": (metric("mse"), IMAGES),
    "psnr": (metric("psnr"), IMAGES),
    "ssim": (metric("ssim"), IMAGES),
    "ms_ssim": (metric("ms_ssim"), IMAGES),
    "feature_cosine": (metric("feature_cosine", extractor=CLASSIFIER), IMAGES),
    "perceptual_distance": (metric("perceptual_distance", features=PerceptualFeatures(CLASSIFIER, "1")), IMAGES),
    "frechet_distance": (metric("frechet_distance"), FEATURES),
    "frechet_distance to a fixed set": (metric("frechet_distance", reference=FEATURES[1, :9] + 1), FEATURES),
    "frechet_distance of images": (metric("frechet_distance", network=CLASSIFIER), IMAGES),
    "kernel_distance": (metric("kernel_distance"), FEATURES),
    "kernel_distance to a fixed set": (metric("kernel_distance", reference=FEATURES[1, :9] + 1), FEATURES),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_metric_is_described_and_shows_an_example(name: str) -> None:
    found = METRICS[name]
    assert name.isidentifier()
    assert name == name.lower()
    assert len(METRICS.components[name].description) > 10
    if name in CUMULATIVE:
        assert isinstance(found.higher_is_better, bool)
        assert "Example" in found.__doc__
        assert ">>>" in found.__doc__


@pytest.mark.parametrize("name", CUMULATIVE)
def test_a_metric_has_one_figure_an_interval_by_subject_and_counts(name: str) -> None:
    if name in SEVERAL_FIGURES:
        return
    found = METRICS[name]
    required = [
        each.name
        for each in inspect.signature(found.aggregate).parameters.values()
        if each.default is each.empty and each.name != "self"
    ]
    assert not required
    assert {"groups", "confidence", "num_resamples", "seed"} <= set(inspect.signature(found.interval).parameters)
    assert callable(found.counts)


@pytest.mark.parametrize("name", IN_IGNITE)
def test_a_metric_is_an_ignite_handler(name: str) -> None:
    build, (y_pred, y) = IN_IGNITE[name]
    direct = build()
    for part in (slice(0, 5), slice(5, 10), slice(10, 12)):
        direct(y_pred[part], y[part])
    engine = Engine(lambda _engine, part: (y_pred[part], y[part]))
    handled = build()
    IgniteMetricHandler(handled).attach(engine, "value")
    seen = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda running: seen.append(running.state.metrics["value"]))
    state = engine.run([slice(0, 5), slice(5, 10), slice(10, 12)], max_epochs=2)
    expected = direct.aggregate()
    assert isinstance(expected, float)
    assert seen == pytest.approx([expected, expected], rel=1e-9, nan_ok=False)
    assert "value" in state.metric_details
    counts = handled.counts()
    assert isinstance(counts, Counts)
    assert counts.entered + sum(counts.left_out.values()) == 12
    subjects = [case % 11 for case in range(12)]  # one has two cases; several metrics leave half of them out
    low, high = handled.interval(groups=subjects, num_resamples=50)
    assert low <= high
    assert handled.interval(groups=subjects, num_resamples=50) == (low, high)
    with pytest.raises(ValueError, match=r"groups|lengths"):
        handled.interval(groups=subjects[:-1], num_resamples=50)


@pytest.mark.parametrize("name", IN_IGNITE)
def test_a_metric_without_a_case_says_so(name: str) -> None:
    empty = IN_IGNITE[name][0]()
    with pytest.raises(ValueError, match="saw a case"):
        empty.aggregate()
