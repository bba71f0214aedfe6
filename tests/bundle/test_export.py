# SPDX-License-Identifier: Apache-2.0
"""Bundles are exported by one command, run on what was exported, and travel as a zip archive."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser

import medcf
from medcf.bundle import export_bundle, with_backend
from medcf.bundle.__main__ import main
from medcf.networks.export import OnnxNetwork, Signature
from medcf.phantoms import write_demo
from medcf.runtime.fingerprint import sha256

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "diffice"
FAST = {"progress": False, "device": "cpu", "amp": False}
SHORT = {"method": "ddim_inversion", "inferer#num_inference_steps": 6}


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return export_bundle("diffice", "onnx", tmp_path_factory.mktemp("onnx"))[0]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_demo(folder, count=1, label=0, formats=("png",))
    (path,) = folder.iterdir()
    return path


def network_of(name):
    """Return the network of a bundle with its weights."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles" / name / "configs" / "inference.json"))
    parser.update({"bundle_root": str(ROOT / "bundles" / name), "device": "cpu", "channels_last": False})
    return parser.get_parsed_content("network")


def difference(network, predict, batch, sides):
    signature = Signature.of(network)
    given = signature.example(batch, sides[: signature.spatial_dims], seed=5)
    with torch.no_grad():
        return float((predict(**given) - network(*positional(given))).abs().max())


def positional(given):
    return [given.get(name) for name in ("x", "timesteps", "context", "class_labels")]


@pytest.mark.slow
def test_the_command_writes_the_real_weights_and_leaves_the_bundle_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sha256(BUNDLE)
    for format in ("torchscript", "exported"):
        monkeypatch.setattr(sys, "argv", ["medcf.bundle", "export", "diffice", "--format", format])
        assert main() == 0
    assert sha256(BUNDLE) == before
    folder = Path("output/diffice/export")
    assert {path.name for path in folder.iterdir()} == {"model.ts", "model.pt2"}
    assert f"{folder / 'model.ts'}: differs from the network by at most" in capsys.readouterr().out
    network = network_of("diffice")
    script, program = torch.jit.load(folder / "model.ts"), torch.export.load(folder / "model.pt2").module()
    for batch, sides in ((1, (16, 20)), (3, (2, 5))):
        assert difference(network, script, batch, sides) < 1e-5
        assert difference(network, lambda **given: program(*positional(given)), batch, sides) < 1e-5
    texts = {"metadata.json": "", "inference.json": "", "export.json": ""}
    torch.jit.load(folder / "model.ts", _extra_files=texts)
    assert json.loads(texts["metadata.json"])["bundle"] == json.loads(texts["export.json"])["bundle"] == "diffice"
    assert json.loads(texts["inference.json"])["method"] == "diffice"
    assert main() == 1
    assert "model.pt2 exists: name another folder by --output, or replace it by --overwrite." in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_of_the_real_weights_is_the_network(onnx_file):
    network = network_of("diffice")
    for batch, sides in ((1, (16, 20)), (3, (2, 5)), (2, (1, 1))):
        assert difference(network, OnnxNetwork(onnx_file, network), batch, sides) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", [SHORT, {"inferer#num_inference_steps": 10, "inferer#num_iterations": 1}])
def test_a_whole_counterfactual_runs_on_onnxruntime(onnx_file, image, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    eager = medcf.load("diffice", **FAST, **options)(image)
    explain = medcf.load("diffice", backend="onnxruntime", onnx_file=str(onnx_file), **FAST, **options)
    assert isinstance(explain.network, OnnxNetwork)  # Diff-ICE differentiates the classifier, not the network
    found = explain(image)
    assert found.row["num_function_evaluations"] == eager.row["num_function_evaluations"] > 0
    change = (torch.as_tensor(found.on_grid["pred"]) - torch.as_tensor(eager.on_grid["pred"])).abs()
    assert change.mean() < 1e-4
    if options is SHORT:  # guidance by the classifier's gradient amplifies rounding in single pixels
        assert change.max() < 1e-4


@pytest.mark.slow
def test_the_bundles_own_command_takes_the_backend(onnx_file, image, tmp_path):
    (tmp_path / "output/diffice/export").mkdir(parents=True)
    shutil.copy(onnx_file, tmp_path / "output/diffice/export")
    words = ["--config_file", str(BUNDLE / "configs" / "inference.json"), "--dataset_dir", str(image.parent)]
    words += ["--output_dir", "out", "--method", "ddim_inversion", "--inferer#num_inference_steps", "4"]
    words += ["--progress", "False", "--device", "cpu", "--backend", "onnxruntime"]
    command = [sys.executable, "-m", "monai.bundle", "run", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / image.stem / "case.json").is_file()


@pytest.mark.parametrize(
    ("bundle", "options", "reason"),
    [
        ("controlcg", {}, "ControlCG injects into the network's attention, so the network runs eager"),
        ("diffice", {"method": "universal"}, "x_t gradient differentiates the network, so"),
        ("diffice", {"inferer#gradient": "xt"}, r"Diff-ICE differentiates the network \(gradient='xt'\), so"),
        ("diffice", {"method": "diffice_single", "inferer#gradient": "xt"}, r"one pass differentiates the network"),
        ("diffice", {"method": "unchanged"}, None),
    ],
)
def test_methods_that_need_the_network_itself_run_eager_and_say_so(bundle, options, reason, caplog):
    network = medcf.load(bundle, backend="onnxruntime", onnx_file="none.onnx", **FAST, **options).network
    assert not isinstance(network, OnnxNetwork)
    warnings = [record.getMessage() for record in caplog.records if "onnxruntime" in record.getMessage()]
    if reason is None:
        assert warnings == []
    else:
        (warning,) = warnings
        assert re.search(reason, warning)


def test_a_mask_to_follow_keeps_the_network_eager():
    inferer = medcf.load("diffice", **FAST, **SHORT).inferer
    inferer.control = lambda image: image
    assert "gives the network a mask" in inferer.eager_reason()


def test_a_missing_export_names_the_command_and_an_unknown_backend_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"not exported to none\.onnx\. Run: python -m medcf\.bundle export "):
        _ = medcf.load("diffice", backend="onnxruntime", onnx_file="none.onnx", **FAST).network
    with pytest.raises(ValueError, match="backend='tensorrt' is unknown: use one of 'eager', 'onnxruntime'"):
        _ = medcf.load("diffice", backend="tensorrt", **FAST).network


def test_another_device_than_the_cpu_is_refused():
    network = torch.nn.Conv2d(1, 1, 1, device="meta")
    with pytest.raises(ValueError, match="runs on the CPU, and the network is on meta: give --device cpu"):
        with_backend(network, "onnxruntime", "none.onnx", BUNDLE)


@pytest.mark.slow
def test_a_stale_export_is_refused_by_name_and_one_of_these_weights_found_behind_it(onnx_file, tmp_path):
    copy = tmp_path / "mine"
    shutil.copytree(BUNDLE, copy)
    weights = torch.load(copy / "models" / "model.pt", weights_only=True)
    name = next(name for name, value in weights.items() if value.is_floating_point())
    torch.save({**weights, name: weights[name] + 0.01}, copy / "models" / "model.pt")
    files = [str(copy / "models" / "model.onnx"), str(onnx_file)]
    shutil.copy(onnx_file, files[0])
    with pytest.raises(ValueError, match=r"models/model\.onnx was exported from other weights .* Run: python -m"):
        _ = medcf.load(copy, backend="onnxruntime", **FAST, **SHORT).network
    shutil.copy(BUNDLE / "models" / "model.pt", copy / "models")
    assert medcf.load(copy, backend="onnxruntime", **FAST, **SHORT).network.path == Path(files[0])
    (copy / "models" / "model.onnx").write_bytes(b"damaged")
    explain = medcf.load(copy, backend="onnxruntime", onnx_file=files, **FAST, **SHORT)
    assert explain.network.path == onnx_file


def test_errors_of_the_command_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, reason in [
        (["difice", "--format", "zip"], "'difice' is not a bundle's folder"),
        (["diffice", "--format", "zip", "--modls_dir", "x"], "Unknown option modls_dir. Did you mean models_dir?"),
        (["diffice", "--format", "torchscript", "--models_dir", "x"], "The weights file x/model.pt does not exist."),
        (["diffice", "--format", "zip", "--seed", "1"], "A zip archive holds the bundle as it is: leave seed away."),
    ]:
        monkeypatch.setattr(sys, "argv", ["medcf.bundle", "export", *words])
        assert main() == 1
        shown = capsys.readouterr()
        assert shown.err.startswith(reason)
        assert shown.err.count("\n") == 1
    assert list(tmp_path.rglob("*.zip")) == []


@pytest.mark.slow
def test_an_archive_is_downloaded_by_monai_and_loaded_by_medcf(image, tmp_path):
    path, about = export_bundle("diffice", "zip", tmp_path / "zips")
    assert path.name == "diffice_v0.1.0.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert about == f"{len(names)} files"
    assert {"diffice/LICENSE", "diffice/configs/metadata.json", "diffice/models/model.pt"} <= set(names)
    again, _ = export_bundle(BUNDLE, "zip", tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()
    command = [sys.executable, "-m", "monai.bundle", "download", "--name", "diffice", "--url", path.as_uri()]
    command += ["--bundle_dir", str(tmp_path / "down"), "--progress", "False"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    plain = {**FAST, "method": "unchanged"}
    results = [medcf.load(each, **plain)(image).row for each in (path, tmp_path / "down" / "diffice", BUNDLE)]
    assert len({row["confidence_before"] for row in results}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["diffice", "controlcg", "fetalplanes"])
def test_monais_ckpt_export_goes_on_working_with_one_tensor(bundle, tmp_path):
    root = ROOT / "bundles" / bundle
    shape = [1, 1, *[16] * (3 if bundle == "controlcg" else 2)]
    monai.bundle.ckpt_export(
        "network_def", str(tmp_path / "model.ts"), str(root / "models" / "model.pt"),
        str(root / "configs" / "metadata.json"), str(root / "configs" / "inference.json"),
        use_trace=True, input_shape=shape, bundle_root=str(root),
    )  # fmt: skip
    x = torch.randn(2, *shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(x), network_of(bundle)(x), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_monais_onnx_export_goes_on_working_with_one_tensor(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monai.bundle.onnx_export(
        "network_def", str(tmp_path / "model.onnx"), str(BUNDLE / "models" / "model.pt"),
        str(BUNDLE / "configs" / "metadata.json"), str(BUNDLE / "configs" / "inference.json"),
        input_shape=[1, 1, 16, 16], bundle_root=str(BUNDLE),
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    x = torch.randn(1, 1, 16, 16)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), network_of("diffice")(x), rtol=0, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("bundle", ["controlcg", "valdmd", "fulora", "fetalplanes"])
def test_every_bundle_goes_into_every_format(bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if bundle in ("valdmd", "fulora"):
        pytest.importorskip("transformers")
    network = network_of(bundle)
    made = {format: export_bundle(bundle, format, tmp_path)[0] for format in ("torchscript", "exported", "onnx")}
    program = torch.export.load(made["exported"]).module()
    runs = [torch.jit.load(made["torchscript"]), OnnxNetwork(made["onnx"], network)]
    for batch, sides in ((1, (2, 4, 3)), (3, (3, 2, 2))):
        for predict in (*runs, lambda **given: program(*positional(given))):
            assert difference(network, predict, batch, sides) < 1e-5
    x = Signature.of(network).example(2, (2, 2, 2)[: Signature.of(network).spatial_dims])["x"]
    with torch.no_grad():  # no prompt, no class
        for predict in runs:
            torch.testing.assert_close(predict(x), network(x), rtol=0, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("bundle", ["fulora", "fetalplanes"])
def test_images_are_generated_on_onnxruntime(bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if bundle == "fulora":
        pytest.importorskip("transformers")
    file, _ = export_bundle(bundle, "onnx", tmp_path)
    drawn = []
    for options in ({}, {"backend": "onnxruntime", "onnx_file": str(file)}):
        parser = ConfigParser()
        parser.read_config(str(ROOT / "bundles" / bundle / "configs" / "inference.json"))
        parser.update({"bundle_root": str(ROOT / "bundles" / bundle), "num_inference_steps": 4, **FAST, **options})
        drawn.append(torch.stack([sample.image for sample in parser.get_parsed_content("inferer")(1, 2)]))
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-4)
