# SPDX-License-Identifier: Apache-2.0
"""A classifier that brings images to its own grid."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DenseNet
from torch.nn.functional import interpolate

from medcf.networks import pooled_features
from medcf.networks.resized_densenet import ResizedDenseNet
from medcf.runtime.weights import load_weights

OPTIONS = {"init_features": 8, "growth_rate": 4, "block_config": (2, 2), "bn_size": 2}


@pytest.mark.parametrize(("dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
def test_it_is_the_densenet_of_its_weights_behind_an_interpolation(tmp_path, dims, mode):
    torch.manual_seed(0)
    plain = DenseNet(dims, 1, 2, **OPTIONS).eval()
    torch.save(plain.state_dict(), tmp_path / "classifier.pt")
    size = (16, 24, 20)[:dims]
    resized = load_weights(ResizedDenseNet(size, dims, 1, 2, **OPTIONS), tmp_path / "classifier.pt")
    image = torch.randn(2, 1, *(8, 12, 10)[:dims])
    upsampled = interpolate(image, size=size, mode=mode, align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(resized(image), plain(upsampled))
        torch.testing.assert_close(pooled_features(resized, image), pooled_features(plain, upsampled))
        torch.testing.assert_close(resized(upsampled), plain(upsampled))  # already on its grid
        assert (resized(image) - plain(image)).abs().max() > 1e-4


def test_a_size_of_other_axes_is_refused():
    with pytest.raises(ValueError, match="must have 3 entries"):
        ResizedDenseNet((16, 16), 3, 1, 2, **OPTIONS)
