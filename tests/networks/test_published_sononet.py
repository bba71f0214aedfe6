# SPDX-License-Identifier: Apache-2.0
"""The published SonoNet's file is read by its names, and images reach it as in its training."""

import pytest
import torch
from torch import nn

from medcf.networks.feature_extractors import feature_extractor
from medcf.networks.published_sononet import sononet_name

PLAN = ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128))


class Published(nn.Module):
    """The layers of the published network, nested as its files name them."""

    def __init__(self):
        super().__init__()
        blocks, channels = [], 1
        for number, widths in enumerate(PLAN):
            layers = []
            for width in widths:
                norm = nn.BatchNorm2d(width, eps=1e-4)
                layers.append(nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), norm, nn.ReLU()))
                channels = width
            blocks.append(nn.Sequential(*layers, *([nn.MaxPool2d(2)] if number < 4 else [])))
        self.features = nn.Sequential(*blocks)
        self.adaption = nn.Sequential(
            nn.Conv2d(128, 64, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 14, 1, bias=False),
            nn.BatchNorm2d(14),
        )


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    network = Published().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(std=0.2)
    network.features[0][0][1].running_var.fill_(1e-4)  # so that a wrong eps shows
    return network


@pytest.fixture(scope="module")
def file(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("sononet") / "SonoNet16.pth"
    torch.save({key: value for key, value in published.state_dict().items() if "num_batches" not in key}, path)
    return path


def test_its_features_are_those_of_the_published_layers(published, file):
    image = torch.rand(2, 1, 224, 288, generator=torch.Generator().manual_seed(1)) * 2 - 1
    flat = image.flatten(1)
    standard = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True, correction=0)
    with torch.no_grad():
        expected = published.adaption[:3](published.features(255 * standard.view_as(image))).mean((2, 3))
    extractor = feature_extractor("sononet", file)
    assert extractor.num_features == 64
    torch.testing.assert_close(extractor(image), expected, atol=0, rtol=1e-4)


def test_brightness_contrast_and_color_do_not_change_its_features(file):
    extractor = feature_extractor("sononet", file)
    image = torch.rand(1, 1, 64, 80, generator=torch.Generator().manual_seed(2))
    expected = extractor(image)
    torch.testing.assert_close(extractor(0.3 * image - 0.5), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(extractor(image.expand(-1, 3, -1, -1)), expected, atol=1e-5, rtol=1e-5)
    assert extractor(torch.zeros(1, 1, 64, 80)).isfinite().all()


def test_names_are_translated_and_class_maps_left_out():
    assert sononet_name("features.2.1.0.weight") == "blocks.2.3.weight"
    assert sononet_name("features.4.2.1.running_var") == "blocks.4.7.running_var"
    assert sononet_name("adaption.1.bias") == "adaption.1.bias"
    assert sononet_name("adaption.3.weight") is None
    assert sononet_name("adaption.4.bias") is None


def test_another_network_or_a_program_is_refused(tmp_path, file):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold a published SonoNet.*SonoNet_PyTorch"):
        feature_extractor("sononet", tmp_path / "other.pth")
    torch.jit.script(nn.ReLU()).save(str(tmp_path / "program.pt"))
    with pytest.raises(ValueError, match=r"program\.pt is a TorchScript file; sononet is read from a state dict"):
        feature_extractor("sononet", tmp_path / "program.pt")
    with pytest.raises(ValueError, match=r"SonoNet16\.pth has the SHA-256"):
        feature_extractor("sononet", file, "0" * 64)
