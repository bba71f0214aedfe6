# SPDX-License-Identifier: Apache-2.0
"""Where real and synthetic images lie: t-SNE of the features of the bundle's oracle, which was trained on none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor, nn

from benchmarks.counterfactual.figure import plt, save
from benchmarks.fulora.images import Images, models_folder
from medcf.bundle import bundle_folder
from medcf.phantoms.planes.states import PLANE_NAMES
from medcf.runtime.weights import load_weights

__all__ = ["draw_sets", "embed", "oracle_features"]

SEED, PERPLEXITY, SHOWN = 0, 30.0, 200


def oracle_features(images: Tensor, network: nn.Module) -> Tensor:
    """Return the features (N, D) of a DenseNet's last layer before its classes."""
    head = nn.Sequential(network.features, *list(network.class_layers)[:-1])
    with torch.no_grad():
        return torch.cat([head(part).flatten(1) for part in images.split(64)])


def load_oracle(ids: Mapping[str, Any]) -> nn.Module:
    """Load the bundle's oracle.

    Raises:
        FileNotFoundError: if it is not trained.
    """
    folder = bundle_folder("fulora") / "configs"
    parser = ConfigParser()
    parser.read_config([str(folder / name) for name in ("inference.json", "evaluate.json")])
    network = parser.get_parsed_content("oracle_def")
    remedy = "Train it with train_oracle.json over train.json and train_classifier.json."
    return load_weights(network, models_folder(ids) / "oracle.pt", remedy=remedy)


def embed(features: Tensor, seed: int = SEED) -> NDArray[np.float32]:
    """Return places (N, 2) of features (N, D)."""
    options: dict[str, Any] = {"perplexity": min(PERPLEXITY, (len(features) - 1) / 3), "random_state": seed}
    return TSNE(2, init="pca", **options).fit_transform(features.numpy())


def draw_sets(path: Path, sets: Mapping[str, Images], ids: Mapping[str, Any], oracle: nn.Module | None = None) -> str:
    """Draw one panel a set, by class, over all others in gray.

    Args:
        path: PNG to write.
        sets: images by name, of phantoms or synthetic ones; the first ``SHOWN`` of a random order.
        ids: further ids of the bundle's configs.
        oracle: a DenseNet; None loads the bundle's.

    Returns:
        The caption.
    """
    network = load_oracle(ids) if oracle is None else oracle
    rng, chosen = np.random.default_rng(SEED), {}
    for name, images in sets.items():
        members = torch.from_numpy(rng.permutation(len(images))[:SHOWN])
        chosen[name] = Images(images.image[members], images.label[members])
    features = torch.cat([oracle_features(images.image, network) for images in chosen.values()])
    places = embed(features)
    labels = torch.cat([images.label for images in chosen.values()]).numpy()
    owner = np.repeat(np.arange(len(chosen)), [len(images) for images in chosen.values()])
    columns = 2
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(8, 4 * rows), squeeze=False, layout="constrained")
    for number, (name, axis) in enumerate(zip(chosen, axes.flat, strict=False)):
        mine = owner == number
        axis.scatter(*places[~mine].T, s=4, color="0.85")
        for label in np.unique(labels):
            members = mine & (labels == label)
            axis.scatter(*places[members].T, s=9, color=f"C{label}", label=PLANE_NAMES[label])
        axis.set(title=f"{name} ({mine.sum()})", xticks=[], yticks=[])
    axes.flat[0].legend(fontsize=8)
    save(figure, path)
    return (
        "t-SNE of real and synthetic planes of phantoms. Features of the bundle's oracle, a DenseNet trained on other "
        "subjects of site A and on no synthetic image, before its last layer; "
        f"perplexity {PERPLEXITY:g}, seed {SEED}; one embedding of all sets, each panel shows one of them by class and "
        "the others in gray. Distances between clusters mean nothing."
    )
