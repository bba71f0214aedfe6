# SPDX-License-Identifier: Apache-2.0
"""Published feature extractors: the networks that the files belong to, and files that do not fit."""

from __future__ import annotations

import hashlib
import zipfile

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from medcf.networks.feature_extractors import MissingWeights, RadImageNet, feature_extractor, radimagenet_name
from medcf.networks.inception import InceptionV3
from medcf.runtime.fingerprint import sha256

#: Names and shapes, one a line and sorted, of the state dict of pytorch-fid 0.3.0's Inception, without the classifier
#: and without counters of batches.
KEYS = "e22ffc91a09f7caa1af2ce051c7ddf26018012910da85827a0b035b343f00177"
#: Every 256th feature of the two images below with the weights below, computed by pytorch-fid 0.3.0 (its own patches of
#: torchvision 0.29.1's blocks, with torch 2.13). torch-fidelity 0.4.0 and pytorch-fid agree with this network to 1e-5
#: on random weights and sizes from 64 x 80 to 320 x 280, too.
EXPECTED = [
    [3.30155, 0.18703, 0.05072, 0.15539, 0.05884, 0.11816, 0.22243, 1.84123],
    [1.80275, 0.15601, 0.02748, 0.08935, 0.04926, 0.04273, 0.05128, 1.04054],
]
#: The same of RadImageNet's network, computed by torchvision 0.29.1's ``resnet50`` without its last layer.
EXPECTED_RADIMAGENET = [
    [973.34448, 249.08595, 914.62805, 577.8078, 1022.82941, 225.07155, 297.98419, 4.67727],
    [481.51666, 124.87213, 471.35239, 290.45154, 522.78583, 111.89664, 154.54744, 2.53189],
]


def scattered_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights by a formula, so that they do not depend on anybody's random numbers."""
    state = {}
    for number, (name, value) in enumerate(sorted(network.state_dict().items())):
        if name.endswith("num_batches_tracked"):
            continue
        scattered = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 12.9898 + number) * 43758.5453
        wave = (2 * (scattered - scattered.floor()) - 1).reshape(value.shape)  # in [-1, 1]
        if value.ndim == 4:
            wave = wave * (6 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            wave = 1 + 0.3 * wave
        else:
            wave = 0.1 * wave
        state[name] = wave.float()
    return state


@pytest.fixture(scope="module")
def inception_state():
    return scattered_weights(InceptionV3())


@pytest.fixture
def inception_file(inception_state, tmp_path):
    """A file like pytorch-fid's: with the classifier of 1008 classes, without counters of batches."""
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save({**inception_state, **classifier}, tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def two_images():
    image = torch.linspace(-1, 1, 64 * 80).mul(9).sin().reshape(1, 1, 64, 80)
    return torch.cat([image, image.flip(3) * 0.5])


def test_inception_has_the_names_and_shapes_of_the_published_file(inception_state):
    lines = sorted(f"{name} {tuple(value.shape)}" for name, value in inception_state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == KEYS


def test_inception_computes_the_features_of_pytorch_fid(inception_file):
    network = feature_extractor("inception", inception_file, sha256(inception_file)[:16])
    features = network(two_images())
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features[:, ::256], torch.tensor(EXPECTED), atol=1e-4, rtol=0)
    assert not network.training
    torch.testing.assert_close(network(two_images().expand(-1, 3, -1, -1)), features)


def test_a_single_channel_is_repeated_and_more_than_three_are_refused():
    with pytest.raises(RuntimeError, match="expand"):
        InceptionV3()(torch.zeros(1, 2, 80, 80))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": torch.zeros(1000, 2048)}, "Inception-v3 of 1000 classes.*pt_inception-2015-12-05"),
        ({"Mixed_7c.branch1x1.bn.bias": torch.zeros(3)}, r"branch1x1\.bn\.bias has shape"),
        ({"Mixed_8a.bn.bias": torch.zeros(3)}, r"unexpected Mixed_8a"),
    ],
)
def test_another_inception_is_refused(inception_state, tmp_path, change, message):
    torch.save({**inception_state, **change}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"other.pth.*{message}"):
        feature_extractor("inception", tmp_path / "other.pth")


def test_a_file_with_another_hash_is_refused(inception_file):
    right = sha256(inception_file)
    for wrong in ("0" * 64, right[:4]):
        with pytest.raises(ValueError, match=f"inception.pth has the SHA-256 {right}"):
            feature_extractor("inception", inception_file, wrong)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth.*pytorch-fid"):
        feature_extractor("inception", inception_file.with_name("gone.pth"), right)


def test_an_unknown_extractor_is_named():
    with pytest.raises(ValueError, match="name='vgg' is unknown: use one of 'inception', 'radimagenet', 'sononet'"):
        feature_extractor("vgg")


def test_without_weights_there_is_a_sentence_in_place_of_a_network():
    missing = feature_extractor("radimagenet")
    assert isinstance(missing, MissingWeights)
    assert missing.reason.startswith("not measured: no weights for radimagenet. Give ResNet50.pt")


def numbered(state):
    """Rename a ResNet-50 as RadImageNet does: by the place of a layer in torchvision's list of them."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    split = {name: name.split(".", 1) for name in state}
    return {f"backbone.{places[root]}.{rest}": state[name] for name, (root, rest) in split.items()}


@pytest.mark.parametrize("published", [True, False])
def test_radimagenets_file_loads_by_its_own_and_by_plain_names(tmp_path, published):
    state = scattered_weights(RadImageNet().network)
    torch.save(numbered(state) if published else {**state, "fc.weight": torch.zeros(165, 2048)}, tmp_path / "r.pt")
    features = feature_extractor("radimagenet", tmp_path / "r.pt")(two_images())
    torch.testing.assert_close(features[:, ::256], torch.tensor(EXPECTED_RADIMAGENET), atol=0, rtol=1e-4)


def test_the_papers_loss_takes_radimagenets_own_file(tmp_path):
    torch.save(numbered(RadImageNet().network.state_dict()), tmp_path / "r.pt")
    parser = ConfigParser()
    parser.read_config(["bundles/diffice/configs/train.json", "bundles/diffice/configs/paper.json"])
    entry = parser["perceptual"] | {"weights": str(tmp_path / "r.pt")}
    (features,) = ConfigParser({"perceptual": entry}).get_parsed_content("perceptual")(two_images())
    assert features.shape[:2] == (2, 512)
    assert radimagenet_name("backbone.5.0.conv1.weight") == "layer2.0.conv1.weight"


class Pool(nn.Module):
    """The mean of each channel, and the number of rows, in the first four of its features."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = torch.full((image.shape[0], 1), image.shape[2], dtype=image.dtype)
        return torch.nn.functional.pad(torch.cat([image.mean((2, 3)), rows], 1), [0, self.width - 4])


class Published(nn.Module):
    """Returns classes unless it is asked for features, as StyleGAN's Inception does."""

    def forward(self, image: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        mean = image.mean((1, 2, 3))[:, None]
        return mean.repeat(1, 2048)[:, :, None, None] if return_features else mean.repeat(1, 1008)


def script_file(network, folder):
    torch.jit.script(network).save(str(folder / "weights.bin"))  # its content decides, not its name
    return folder / "weights.bin", sha256(folder / "weights.bin")


@pytest.mark.parametrize(
    ("name", "script", "ends", "rows"),
    [
        ("inception", None, (0, 255), 64),  # the script resizes
        ("radimagenet", None, (-1, 1), 224),
        ("inception", {"range": (-1, 1), "size": 299}, (-1, 1), 299),
        ("radimagenet", {"range": "imagenet", "size": [32, 40]}, None, 32),
    ],
)
def test_a_script_gets_the_range_and_size_that_it_expects(tmp_path, name, script, ends, rows):
    network = feature_extractor(name, *script_file(Pool(2048), tmp_path), script=script)
    image = torch.tensor([-1.0, 1.0, 0.0]).reshape(3, 1, 1, 1).expand(-1, -1, 64, 80)
    features = network(image)
    assert features.shape == (3, 2048)
    means = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    black, white = ([-m / s for m, s in zip(*means, strict=True)], [(1 - m) / s for m, s in zip(*means, strict=True)])
    if ends is not None:
        black, white = ([end] * 3 for end in ends)
    gray = [(low + high) / 2 for low, high in zip(black, white, strict=True)]
    torch.testing.assert_close(features[:, :3], torch.tensor([black, white, gray], dtype=torch.float32))
    assert features[:, 3].tolist() == [rows] * 3
    color = torch.cat([image[:1], image[1:2], image[2:]], 1)
    torch.testing.assert_close(network(color)[0, :3], torch.tensor([black[0], white[1], gray[2]]))


def test_a_script_with_a_switch_for_features_is_asked_for_them(tmp_path):
    file, digits = script_file(Published(), tmp_path)
    assert torch.equal(
        feature_extractor("inception", file, digits)(torch.ones(2, 1, 8, 8)), torch.full((2, 2048), 255.0)
    )
    asked = feature_extractor("inception", file, digits, script={"arguments": {"return_features": False}})
    with pytest.raises(ValueError, match=r"\(2, 1008\) for 2 images, not features \(2, 2048\).*return_features"):
        asked(torch.ones(2, 1, 8, 8))


def test_a_script_is_a_program_and_is_not_run_without_its_hash(tmp_path, monkeypatch):
    file, digits = script_file(Pool(2048), tmp_path)
    monkeypatch.setattr(torch.jit, "load", lambda *_args, **_options: pytest.fail("it was run"))
    for part in (None, digits[:16]):
        with pytest.raises(
            ValueError, match=r"weights\.bin is a TorchScript file.*a program.*all 64 digits.*state dict"
        ):
            feature_extractor("inception", file, part)
    with pytest.raises(ValueError, match=f"weights.bin has the SHA-256 {digits}, not {'0' * 64}.*was not run"):
        feature_extractor("inception", file, "0" * 64)


def test_a_damaged_script_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("weights/code/__torch__.py", "op_version_set = 1")
    with pytest.raises(ValueError, match=r"weights\.pt is not a readable TorchScript file"):
        feature_extractor("inception", tmp_path / "weights.pt", sha256(tmp_path / "weights.pt"))


def test_what_belongs_to_scripts_is_refused_with_a_state_dict(inception_file):
    with pytest.raises(ValueError, match=r"script=.*is for a TorchScript file, and .*inception\.pth is none"):
        feature_extractor("inception", inception_file, script={"size": 64})
