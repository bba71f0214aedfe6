# SPDX-License-Identifier: Apache-2.0
"""Several classifiers together: a majority vote, a stacked ensemble, and deep feature integration.

``python -m medcf.evaluation.ensembles RUN RUN ...`` combines trainings of `medcf.evaluation.ClassifierReport`.

Sources: Tian et al., arXiv 2501.15248, section 5.2.4 (votes); Krishna and Kokil 2024, "Standard fetal ultrasound plane
classification based on stacked ensemble of deep learning models" (a second learner on the networks' outputs); Krishna
and Kokil 2023, "Automated classification of common maternal fetal ultrasound planes using multi-layer perceptron with
deep feature integration" (a perceptron on their features). Neither has public code: the second learner here is logistic
regression, the perceptron has one hidden layer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medcf.evaluation.classification import Predictions, class_scores

__all__ = ["ENSEMBLES", "deep_features", "main", "majority_vote", "stacked"]


def majority_vote(members: Sequence[Predictions]) -> NDArray[np.float64]:
    """Let each classifier vote for one class; where votes are equal, their mean probability decides.

    Args:
        members: predictions of the same images.

    Returns:
        Shares of the votes (N, K), to which a little of the mean probability is added that orders equal ones.
    """
    stack = np.stack([one.probabilities for one in members]).astype(np.float64)
    votes = np.eye(stack.shape[2])[stack.argmax(2)].mean(0)
    return votes + stack.mean(0) / (2 * len(members) + 1)  # less than one vote's share


def stacked(known: Sequence[Predictions], members: Sequence[Predictions], seed: int = 0) -> NDArray[np.float64]:
    """Let logistic regression decide from all classifiers' probabilities.

    Args:
        known: predictions of images on which none of them was trained, to learn from.
        members: predictions of the test images, in the same order of classifiers.
        seed: of the regression.
    """
    learner = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed))
    return _learned(learner, known, members, "probabilities")


def deep_features(known: Sequence[Predictions], members: Sequence[Predictions], seed: int = 0) -> NDArray[np.float64]:
    """Let a perceptron decide from all classifiers' features; see `stacked`."""
    perceptron = MLPClassifier((128,), alpha=1e-2, max_iter=500, random_state=seed)
    return _learned(make_pipeline(StandardScaler(), perceptron), known, members, "features")


def _learned(learner: Any, known: Sequence[Predictions], members: Sequence[Predictions], what: str) -> NDArray[Any]:
    """Fit on known images, and return the probabilities (N, K) of the others."""
    label = known[0].label
    learner.fit(np.concatenate([getattr(one, what) for one in known], axis=1), label)
    found = learner.predict_proba(np.concatenate([getattr(one, what) for one in members], axis=1))
    every = np.zeros((len(found), members[0].probabilities.shape[1]))
    every[:, learner.classes_] = found
    return every


#: By name: predictions of known images and of the test images to probabilities (N, K).
ENSEMBLES = {
    "majority vote": lambda known, members: majority_vote(members),
    "stacked": stacked,
    "deep features": deep_features,
}


def main(arguments: list[str] | None = None) -> None:
    """Print the scores of some classifiers and of their ensembles."""
    parser = argparse.ArgumentParser(prog="python -m medcf.evaluation.ensembles", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folders of trainings")
    options = parser.parse_args(arguments)
    for run in options.runs:
        if missing := [name for name in ("val.npz", "test.npz") if not (run / name).is_file()]:
            parser.error(f"{run / missing[0]} is missing: a training that tests its classifier writes it.")
    known = [Predictions.load(run / "val.npz") for run in options.runs]
    members = [Predictions.load(run / "test.npz") for run in options.runs]
    label = members[0].label
    if any(not np.array_equal(one.label, label) for one in members):
        parser.error("The runs were tested on other images: their predictions cannot be put together.")
    rows: dict[str, NDArray[Any]] = {
        str(run): one.probabilities for run, one in zip(options.runs, members, strict=True)
    }
    if len(members) > 1:
        rows |= {name: combine(known, members) for name, combine in ENSEMBLES.items()}
    for name, probabilities in rows.items():
        scores = class_scores(probabilities, label)
        told = ", ".join(f"{key} {scores[key]:.3f}" for key in ("accuracy", "precision", "recall", "f1"))
        sys.stdout.write(f"{name}: {told}\n")


if __name__ == "__main__":
    main()
