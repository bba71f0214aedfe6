# SPDX-License-Identifier: Apache-2.0
"""Exported denoisers predict what the network predicts, for any batch and size, and say what they cannot do."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn

from medcf.networks import BundleUNet, ClassTokenUNet, Condition, Denoiser
from medcf.networks.denoiser import unwrap
from medcf.networks.export import SUFFIXES, OnnxNetwork, Signature, export_network
from medcf.runtime.weights import weights_sha256
from medcf.schedulers import create_scheduler

SMALL = {"num_res_blocks": 1, "channels": [8, 16], "norm_num_groups": 4, "num_head_channels": 8}


def build(name):
    """Return a small network with random weights: MONAI's last convolution is 0, which would hide everything."""
    torch.manual_seed(0)
    if name == "classes 2D":
        network = BundleUNet(
            2, 1, 1, attention_levels=[False, True], num_class_embeds=3, use_flash_attention=True, **SMALL
        )
    elif name == "context 2D":
        options = {"with_conditioning": True, "cross_attention_dim": 6}
        network = BundleUNet(2, 2, 2, attention_levels=[False, True], **options, **SMALL)
    else:
        options = {"patch_size": 2, "rows_at_once": 1, "cross_attention_dim": 8}
        network = ClassTokenUNet(3, 1, 1, attention_levels=[False, True], **options, **SMALL)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


ARGUMENTS = ("x", "timesteps", "context", "class_labels")
NAMES = ("classes 2D", "context 2D", "tokens 3D")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the network and the file of a case, made once."""
    known = {}

    def get(name, format):
        if format == "onnx":
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnxscript")
        if (name, format) not in known:
            network, path = build(name), tmp_path_factory.mktemp("export") / f"model{SUFFIXES[format]}"
            worst = export_network(network, path, format, record={"bundle": "small"}, files={"inference.json": "{}"})
            assert worst <= 1e-5
            known[name, format] = network, path
        return known[name, format]

    return get


def loaded(path, network):
    """Return the file as a function of the arguments by name."""
    if path.suffix == ".onnx":
        return OnnxNetwork(path, network)
    if path.suffix == ".ts":
        return torch.jit.load(path)
    program = torch.export.load(path).module()
    return lambda **given: program(*(given.get(key) for key in ARGUMENTS))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", SUFFIXES)
def test_any_batch_and_size_is_predicted_as_by_the_network(made, name, format):
    network, path = made(name, format)
    signature, predict = Signature.of(network), loaded(path, network)
    sizes = [(1, (5, 2, 3)), (4, (2, 6, 2)), (2, (3, 3, 3))]
    sizes += [] if format == "exported" else [(3, (1, 1, 1))]  # the deepest level is one pixel
    for seed, (batch, sides) in enumerate(sizes):
        given = signature.example(batch, sides[: signature.spatial_dims], seed + 7)
        with torch.no_grad():
            expected = network(*(given.get(key) for key in ARGUMENTS))
            found = predict(**given)
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1, float(expected.abs().max())))


@pytest.mark.slow
def test_torchscript_takes_what_the_network_takes_by_position_and_name(made):
    network, path = made("classes 2D", "torchscript")
    script = torch.jit.load(path)
    x, steps, labels = torch.randn(2, 1, 8, 12), torch.tensor([7, 900]), torch.tensor([0, 1])
    with torch.no_grad():
        assert torch.equal(script(x), network(x))  # timesteps 0 and the null class, as for MONAI's tools
        assert torch.equal(script(x, steps, None, labels), network(x, steps, None, labels))
        assert torch.equal(script(x, timesteps=steps[:1]), network(x, steps[:1].expand(2)))
        with pytest.raises(Exception, match="takes no context"):
            script(x, context=torch.zeros(2, 1, 6))
        with pytest.raises(Exception, match="must be integers"):
            script(x, timesteps=torch.tensor([0.5]))


@pytest.mark.slow
def test_the_file_records_the_weights_and_holds_the_configs(made):
    network, path = made("classes 2D", "torchscript")
    texts = {"export.json": "", "inference.json": ""}
    torch.jit.load(path, _extra_files=texts)
    assert json.loads(texts["export.json"]) == {"weights_sha256": weights_sha256(network), "bundle": "small"}
    assert texts["inference.json"] in ("{}", b"{}")
    _, program = made("classes 2D", "exported")
    texts = {"export.json": ""}
    torch.export.load(program, extra_files=texts)
    assert json.loads(texts["export.json"])["bundle"] == "small"


@pytest.mark.slow
def test_onnxruntime_stands_in_for_the_network(made):
    network, path = made("classes 2D", "onnx")
    stand_in = OnnxNetwork(path, network)
    x = torch.randn(2, 1, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(stand_in(x), network(x), rtol=0, atol=1e-5)
        copy = pickle.loads(pickle.dumps(stand_in))
        assert torch.equal(copy(x), stand_in(x))
        scheduler = create_scheduler("ddim", num_train_timesteps=1000, prediction_type="epsilon")
        scheduler.set_timesteps(10)
        condition = Condition(labels=1, null=Condition(labels=2), scale=3.0)
        ours, theirs = (Denoiser(each, scheduler, condition)(x, 500).noise for each in (stand_in, network))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)
    assert unwrap(stand_in) is network
    assert stand_in.num_class_embeds == 3
    assert list(stand_in.parameters()) == []
    with pytest.raises(AttributeError, match="nothing"):
        _ = stand_in.nothing


@pytest.mark.slow
def test_onnxruntime_refuses_gradients_and_what_does_not_fit(made):
    network, path = made("classes 2D", "onnx")
    stand_in, x = OnnxNetwork(path, network), torch.randn(1, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r"computes no gradients, .*--backend eager"):
        stand_in(x.clone().requires_grad_())
    with torch.no_grad():
        stand_in(x.clone().requires_grad_())  # nothing is recorded
    with pytest.raises(ValueError, match="a multiple of 2"):
        stand_in(x[..., :7])
    with pytest.raises(ValueError, match="2 spatial dimensions"):
        stand_in(x[..., None])
    _, other = made("context 2D", "onnx")
    unprompted = OnnxNetwork(other, build("context 2D"))
    with pytest.raises(ValueError, match="knows no 'no prompt': give context"):
        unprompted(torch.randn(1, 2, 8, 8))
    with pytest.raises(ValueError, match="give embedded prompts"):
        unprompted(torch.randn(1, 2, 8, 8), context=torch.ones(1, 4, dtype=torch.long))


@pytest.mark.slow
def test_a_file_of_other_weights_is_refused_by_name(made, tmp_path):
    network, path = made("classes 2D", "onnx")
    other = build("classes 2D")
    with torch.no_grad():
        other.out[-1].conv.bias += 1e-3
    with pytest.raises(ValueError, match=r"model\.onnx was exported from other weights than those of BundleUNet"):
        OnnxNetwork(path, other)
    (tmp_path / "text.onnx").write_text("none")
    with pytest.raises(ValueError, match=r"text\.onnx is not an ONNX file"):
        OnnxNetwork(tmp_path / "text.onnx", network)
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx does not exist"):
        OnnxNetwork(tmp_path / "missing.onnx", network)


class Odd(nn.Module):
    """A network that treats a batch of two differently, and one that reads a value."""

    in_channels = 1

    def __init__(self, kind):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(1, 1, 1), kind

    def forward(self, x, timesteps=None):
        if self.kind == "batch":
            return self.conv(x) * (2 if int(x.shape[0]) == 2 else 1)
        return self.conv(x) if float(x.mean()) > 0 else -self.conv(x)


def test_a_file_that_would_predict_something_else_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"predicts something else than the network, .* nothing was written"):
        export_network(Odd("batch"), tmp_path / "model.ts", "torchscript")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_says_why_and_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"Odd cannot be exported as 'exported': .* Try 'torchscript'"):
        export_network(Odd("value"), tmp_path / "model.pt2", "exported")
    with pytest.raises(ValueError, match="only a network of the kind of MONAI's DiffusionModelUNet"):
        export_network(nn.Linear(1, 1), tmp_path / "model.ts", "torchscript")
    with pytest.raises(ValueError, match="format='tensorrt' is unknown: use one of 'torchscript'"):
        export_network(Odd("batch"), tmp_path / "model.ts", "tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_more_than_two_gigabytes_does_not_go_into_onnx(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("medcf.networks.export.formats._LIMIT", 4)
    with pytest.raises(ValueError, match=r"an ONNX file holds less than 2 GB\. Try 'torchscript'"):
        export_network(Odd("batch"), tmp_path / "model.onnx", "onnx")


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"ONNX needs onnxruntime, .*'medcf\[onnx\]'"):
        export_network(build("classes 2D"), tmp_path / "model.onnx", "onnx")


def test_the_signature_of_monais_own_network_is_known():
    network = DiffusionModelUNet(2, 3, 3, attention_levels=[False, False], **SMALL)
    signature = Signature.of(network)
    assert (signature.channels, signature.spatial_dims, signature.divisor) == (3, 2, 2)
    assert signature.names() == ["x", "timesteps"]
    assert Signature.of(build("tokens 3D")).names() == ["x", "timesteps", "class_labels"]
    assert Signature.of(build("tokens 3D")).divisor == 4
    assert Signature.of(build("context 2D")).features == 6
