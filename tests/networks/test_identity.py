# SPDX-License-Identifier: Apache-2.0
"""The identity network: its two outputs, and the bundle's trained weights on heads it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medcf.bundle.overlay import config_chain
from medcf.metrics.subject_parameters import SubjectParameters
from medcf.networks.identity import IdentityNetwork, balanced
from medcf.phantoms import FetalHead, PairedPhantomDataset
from medcf.phantoms.head.identities import HEAD, RECOVERABLE, subject_parameters
from medcf.runtime.weights import load_weights

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffice"


def test_outputs_are_a_unit_vector_and_values_in_physical_units():
    network = IdentityNetwork(2, embedding_size=8, features=4, mean=[76.0, 96.0], std=[8.0, 9.0]).eval()
    torch.nn.init.zeros_(network.parameters_head.weight)
    network.parameters_head.bias.data = torch.tensor([1.0, -2.0])
    output = network(torch.randn(3, 1, 64, 80))
    torch.testing.assert_close(output["parameters"], torch.tensor([[84.0, 78.0]]).expand(3, 2))
    torch.testing.assert_close(output["embedding"].norm(dim=1), torch.ones(3))


def test_mean_and_spread_are_part_of_the_weights():
    trained = IdentityNetwork(1, features=4, mean=[76.0], std=[8.0])
    fresh = IdentityNetwork(1, features=4)
    fresh.load_state_dict(trained.state_dict())
    image = torch.randn(2, 1, 64, 80)
    torch.testing.assert_close(fresh.eval()(image)["parameters"], trained.eval()(image)["parameters"])
    torch.testing.assert_close(fresh.features(image), trained(image)["embedding"])


def test_place_matters_and_every_weight_learns():
    network = IdentityNetwork(1, features=4)
    image = torch.zeros(2, 1, 64, 80)
    image[0, 0, 8:24, 8:24] = 1.0
    image[1, 0, 40:56, 56:72] = 1.0
    first, second = network.eval()(image)["embedding"]
    assert (first - second).norm() > 0.01
    output = network.train()(torch.randn(4, 1, 64, 80))
    (output["embedding"].pow(3).sum() + output["parameters"].sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("gamma", [0.4, 0.7, 1.5, 2.5])
@pytest.mark.parametrize("shape", [(3, 1, 32, 32), (2, 1, 8, 8, 8)])
def test_balanced_gray_values_are_the_same_at_every_gain(gamma, shape):
    gray = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    gray[:, :, : shape[2] // 2] = 0
    gray[:, :, -1, 0] = 1
    found = balanced(2 * gray - 1)
    torch.testing.assert_close(balanced(2 * gray**gamma - 1), found, atol=2e-3, rtol=0)
    assert found.min() == pytest.approx(-1, abs=1e-3)
    assert found.max() == 1


@pytest.mark.parametrize("value", [-1.0, 0.3, 1.0])
def test_balancing_an_image_of_one_gray_value_stays_finite(value):
    found = balanced(torch.full((1, 1, 8, 8), value))
    assert found.isfinite().all()
    assert found.abs().max() <= 1


def test_the_embedding_does_not_change_with_the_gain_if_it_is_balanced():
    torch.manual_seed(0)
    gray = torch.rand(2, 1, 32, 32)
    gray[:, :, 0, 0] = 1
    plain, even = (IdentityNetwork(0, features=4, num_blocks=4, balance_gain=one).eval() for one in (False, True))
    same = [
        (network.features(2 * gray - 1) * network.features(2 * gray**0.5 - 1)).sum(1).min() for network in (plain, even)
    ]
    assert same[1] > 0.999 > same[0]


@pytest.mark.parametrize("shape", [(3, 1, 32, 40), (2, 1, 8, 8, 8)])
def test_the_embedding_of_a_mirror_image_is_the_same_if_asked_for(shape):
    torch.manual_seed(0)
    image, dims = torch.randn(shape), len(shape) - 2
    sizes = {"spatial_dims": dims, "features": 4, "num_blocks": 3, "grid": (2,) * dims}
    plain, same = (IdentityNetwork(1, mirrored=one, **sizes).eval() for one in (False, True))
    torch.testing.assert_close(same(image), same(image.flip(-1)))
    assert (plain.features(image) - plain.features(image.flip(-1))).norm() > 0.01
    assert same(image)["parameters"].shape == (len(image), 1)


def test_fewer_blocks_keep_larger_maps():
    network = IdentityNetwork(0, features=4, num_blocks=3)
    assert network.trunk.feature_maps(torch.zeros(1, 1, 32, 32))[-1].shape[2:] == (8, 8)


def test_three_dimensions():
    network = IdentityNetwork(2, spatial_dims=3, features=2, max_features=4, grid=(1, 2, 2), hidden=8)
    assert network(torch.randn(2, 1, 16, 16, 16))["parameters"].shape == (2, 2)


def test_statistics_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="mean has 1 values"):
        IdentityNetwork(2, mean=[1.0])
    with pytest.raises(ValueError, match="std must be positive"):
        IdentityNetwork(2, std=[1.0, 0.0])
    with pytest.raises(ValueError, match="needs 2 sizes"):
        IdentityNetwork(2, grid=(4,))


@pytest.fixture(scope="module")
def names():
    config = ConfigParser(ConfigParser.load_config_files(config_chain(BUNDLE / "configs" / "train_identity.json")))
    assert tuple(config["parameters"]) == RECOVERABLE
    return config["parameters"]


@pytest.fixture(scope="module")
def network(names):
    return load_weights(IdentityNetwork(len(names)), BUNDLE / "models" / "identity.pt")


@pytest.fixture(scope="module")
def heads(names):
    """Sixteen heads of the test split: non-standard planes, their standard planes, and the true parameters."""
    items = PairedPhantomDataset(split="test", count=16, progress=False).items
    images = {key: torch.stack([item[key] for item in items]) for key in ("image", "image_true")}
    truth = np.stack([subject_parameters(FetalHead(int(item["subject"])), names) for item in items])
    return images["image"], images["image_true"], torch.from_numpy(truth)


def identity_lost(network, names, counterfactual, heads):
    columns = [names.index(name) for name in HEAD]
    _, paired, truth = heads
    metric = SubjectParameters(HEAD, network.std[columns])
    found, reference = (network(picture)["parameters"][:, columns] for picture in (counterfactual, paired))
    metric(found, truth[:, columns], reference=reference)
    return metric


def test_the_bundles_network_finds_the_subject_of_a_standard_plane(network, heads):
    similarity = network.features(heads[1]) @ network.features(heads[0]).T
    assert float((similarity.argmax(1) == torch.arange(16)).float().mean()) >= 0.8


def test_the_bundles_network_reads_the_size_of_the_head(network, names, heads):
    metric = identity_lost(network, names, heads[1], heads)
    found, true, _ = metric.get_buffer().chunk(3, dim=1)
    for column in (HEAD.index("bpd_mm"), HEAD.index("ofd_mm")):
        assert np.corrcoef(found[:, column], true[:, column])[0, 1] > 0.8
    assert metric.mean_absolute_error()["bpd_mm"] < 5.0


def test_another_head_or_a_changed_one_is_not_the_subject(network, names, heads):
    paired = heads[1]
    zoom = torch.tensor([[1.25, 0.0, 0.0], [0.0, 1.25, 0.0]]).expand(16, 2, 3)
    grid = torch.nn.functional.affine_grid(zoom, list(paired.shape), align_corners=False)
    shrunk = torch.nn.functional.grid_sample(paired + 1, grid, align_corners=False) - 1
    kept = identity_lost(network, names, heads[0], heads).lost_identity()
    assert abs(kept) < 0.2
    for changed in (paired.roll(1, 0), shrunk, paired.flip(3), paired.mean(0, keepdim=True).expand_as(paired)):
        assert identity_lost(network, names, changed, heads).lost_identity() > 0.35
