# SPDX-License-Identifier: Apache-2.0
"""A figure whose network has no weights is a sentence in the table; the others are measured."""

from __future__ import annotations

import pytest
import torch

from medcf.evaluation import AbsentError, Evaluation
from medcf.networks.feature_extractors import MissingWeights

BATCH = {"image": torch.zeros(4, 1, 2, 2), "pred": torch.arange(16.0).reshape(4, 1, 2, 2), "case": list("abcd")}
METRICS = {"fid": {"name": "frechet_distance", "of": "inception", "extractor": "inception"}, "mse": "mse"}


def test_the_sentence_stands_in_place_of_the_figure():
    networks = {"inception": MissingWeights("not measured: give the file")}
    figures = Evaluation(METRICS, networks).run([BATCH, BATCH])
    assert figures["fid"] == "not measured: give the file"
    assert figures["mse"] > 0


def test_with_the_network_the_figure_is_measured():
    figures = Evaluation(METRICS, {"inception": lambda images: images.flatten(1)}).run([BATCH])
    features = BATCH["pred"].flatten(1).double()  # the inputs' are 0: only means and variances are left
    assert figures["fid"] == pytest.approx(float(features.mean(0).square().sum() + features.T.cov().trace()))


def test_a_network_that_nobody_named_is_still_an_error():
    with pytest.raises(AbsentError, match="inception"):
        Evaluation(METRICS, {}).run([BATCH])
