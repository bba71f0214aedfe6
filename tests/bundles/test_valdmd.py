# SPDX-License-Identifier: Apache-2.0
"""The job of the VALD-MD bundle as a user starts it, with networks small enough for a test."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

pytest.importorskip("transformers")

from medcf.metrics.novelty import fit_novelty
from medcf.networks.tokenizer import fit_tokenizer
from medcf.runtime.error_report import root_cause
from medcf.sampling import LatentSpace

BUNDLE = Path(__file__).parents[2] / "bundles" / "valdmd"
CONFIGS = BUNDLE / "configs"
PROMPTS = ["normal chest x-ray", "lung opacity", "COVID-19", "viral pneumonia", "large opacity on the left"]
SMALL = {
    "network_def#unet#channels": [8, 16, 16],
    "network_def#unet#norm_num_groups": 8,
    "network_def#unet#num_head_channels": 8,
    "text_encoder_def#hidden_size": 16,
    "text_encoder_def#num_heads": 2,
    "autoencoder_def#channels": [8, 8],
    "autoencoder_def#norm_num_groups": 8,
    "segmenter_def#channels": [4, 8, 8, 8],
    "classifier_def#features": 4,
    "classifier_def#max_features": 8,
    "num_inference_steps": 6,
    "device": "cpu",
    "progress": False,
}

pytestmark = pytest.mark.bundle


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Overrides with random weights; the classifier calls everything a lung opacity."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    fit_tokenizer(PROMPTS, folder / "tokenizer.json")
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser.update(SMALL | {"models_dir": str(folder)})
    parts = {"model": "network_def", "autoencoder": "autoencoder_def", "segmenter": "segmenter_def"}
    for name, key in {**parts, "classifier": "classifier_def"}.items():
        network = parser.get_parsed_content(key)
        for weight in network.parameters():
            if weight.ndim > 1 and not weight.any():
                torch.nn.init.normal_(weight, std=0.1)
        if name == "classifier":
            network.head.bias.data = torch.tensor([0.0, 3.0, 0.0, 0.0])
        torch.save(dict(network.state_dict()), folder / f"{name}.pt")
    parser["novelty"].pop("state")
    parser.parse(True)
    noise = torch.randn(44, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    pictures = (2 * torch.from_numpy(radiograph(64, 64)) - 1 + 0.1 * noise).clamp(-1, 1)
    statistics = fit_novelty(parser.get_parsed_content("novelty"), [pictures[:24]], [pictures[24:]])
    torch.save(statistics, folder / "novelty.pt")
    return SMALL | {"models_dir": str(folder)}


def radiograph(rows=80, columns=64):
    """Two dark lungs in a gray body: rows x columns in [0, 1]."""
    y, x = np.mgrid[:rows, :columns] / [[[rows]], [[columns]]]
    image = 0.7 - 0.1 * np.cos(9 * y) * np.sin(7 * x)
    for center in (0.28, 0.72):
        image[((x - center) / 0.17) ** 2 + ((y - 0.45) / 0.3) ** 2 < 1] -= 0.5
    return image.astype(np.float32)


def write_dicom(path, kind, inverted):
    """A CR or DX image of 12 bits; MONOCHROME1 stores it inverted."""
    values = np.rint(radiograph() * 4095).astype(np.uint16)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    classes = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1"}
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = classes[kind]
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Modality, data.PatientID = kind, "synthetic"
    data.Rows, data.Columns = values.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    data.ImagerPixelSpacing, data.WindowCenter, data.WindowWidth = [4.0, 4.0], 2048, 4096
    data.PixelData = (4095 - values if inverted else values).tobytes()
    data.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The same picture as PNG, NIfTI, CR and inverted DX."""
    folder = tmp_path_factory.mktemp("radiographs")
    Image.fromarray(np.rint(radiograph() * 255).astype(np.uint8)).save(folder / "a.png")
    affine = np.array([[-4.0, 0, 0, 9], [0, -4.0, 0, 7], [0, 0, 1, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.rint(radiograph().T * 255).astype(np.uint8)[..., None], affine), folder / "b.nii.gz")
    write_dicom(folder / "c.dcm", "CR", inverted=False)
    write_dicom(folder / "d.dcm", "DX", inverted=True)
    return folder


@pytest.fixture(scope="module")
def finished(job, images, tmp_path_factory):
    """A run toward the class "normal"."""
    return job.run(dataset_dir=str(images), output_dir=str(tmp_path_factory.mktemp("finished")))


def test_every_radiograph_gets_its_map_in_its_own_geometry(job, finished, images):
    rows = job.scores(finished)
    assert {row["format"] for row in rows} == {"raster", "nifti", "dicom"}
    assert len(rows) == 4
    for row in rows:
        folder = finished / row["case"]
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        stored = ("original", "counterfactual", "difference", "trajectory", "attribution", "organ")
        assert names == {"panel.png", "case.json", *(f"{name}.nii.gz" for name in stored)}
        assert (row["rows"], row["columns"]) == ("80", "64")
        difference, organ, attribution = (
            nib.load(folder / f"{name}.nii.gz").get_fdata() for name in ("difference", "organ", "attribution")
        )
        assert difference.shape == (64, 80, 1)
        assert row["label_before"] == "1"  # sick: the input minus the counterfactual
        assert row["attribution_sign"] == "input - counterfactual"
        np.testing.assert_allclose(attribution, -difference * (organ > 0), atol=1e-6)
        assert float(row["organ_fraction"]) == pytest.approx(organ.mean(), abs=1e-6)
    source = nib.load(images / "b.nii.gz")
    written = nib.load(finished / "b" / "attribution.nii.gz")
    np.testing.assert_array_equal(written.affine, source.affine)


def test_the_networks_see_one_picture_in_every_format(job, finished):
    """8 bits or 12, inverted or not: the autoencoder loses the same, which depends on the picture alone."""
    first, *others = job.scores(finished)
    for other in others:
        for name in ("floor", "difference_floor", "confidence_before"):
            assert float(other[name]) == pytest.approx(float(first[name]), rel=0.02), (other["case"], name)


def test_every_case_has_its_floors(job, finished):
    for row in job.scores(finished):
        assert 0 < float(row["difference_floor"]) < float(row["floor"])
        assert (row["below_floor"] == "True") == (float(row["edit_rms"]) < float(row["difference_floor"]))
        case = json.loads((finished / row["case"] / "case.json").read_text())
        assert {"floor", "difference_floor", "edit_rms", "below_floor"} <= case.keys()


def test_the_prompt_has_the_last_word_and_the_target_is_what_is_reached(job, images, finished, tmp_path):
    words = {"dataset_dir": str(images), "prompt": "large opacity on the left"}
    out = job.run(**words, output_dir=str(tmp_path / "free"))
    assert all(row["target"] == row["label_after"] and row["unchanged"] == "False" for row in job.scores(out))
    same, other = (nib.load(f / "a" / "counterfactual.nii.gz").get_fdata() for f in (finished, out))
    assert np.abs(same - other).max() > 1e-4
    toward = job.run(**words, output_dir=str(tmp_path / "toward"), target="COVID-19")
    assert {row["target"] for row in job.scores(toward)} == {"2"}
    again = nib.load(toward / "a" / "counterfactual.nii.gz").get_fdata()
    np.testing.assert_allclose(again, other, atol=1e-5)


EVERY = ["sdedit", "direct_inversion", "ddim_inversion", "controlcg", "ilvr", "diffice_single"]


@pytest.mark.parametrize("method", EVERY)
def test_other_methods_follow_the_prompt_too(job, images, tmp_path, method):
    small = {"inferer#classifier_scales": [5]} if method == "diffice_single" else {}
    target = {"target": 0} if method == "diffice_single" else {}
    out = job.run(
        dataset_dir=str(images), output_dir=str(tmp_path), method=method, prompt="normal chest x-ray", **small, **target
    )
    assert all(float(row["edit_rms"]) > 0 for row in job.scores(out))


def test_a_method_that_needs_a_class_says_so(job, images, tmp_path):
    with pytest.raises(RuntimeError) as error:
        job.run(dataset_dir=str(images), output_dir=str(tmp_path), method="diffice", prompt="normal chest x-ray")
    assert "give its index" in str(root_cause(error.value))


@pytest.fixture(scope="module")
def adapter(options, tmp_path_factory):
    """An adapter of the module's model, trained for four iterations at a high rate."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    rest = {name: value for name, value in options.items() if name not in ("num_inference_steps", "progress")}
    rest |= {"rank": 4, "adapted_layers": "all attention and feed-forward", "learning_rate": 0.05, "views": 2}
    rest |= {"num_train": 4, "num_val": 2, "output_dir": str(folder), "cache_dir": str(folder / "phantoms")}
    files = [str(CONFIGS / name) for name in ("train.json", "train_lora.json")]
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **rest)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    assert (folder / "loss.csv").read_text().count("\n") == 5  # two epochs of two iterations
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert all(value.shape[0] == 4 or value.shape[1] == 4 for value in checkpoint["network"].values())  # nothing else
    return folder / "adapter.safetensors"


def test_an_adapter_is_trained_alone_and_mixed_in_by_its_ratio(job, images, adapter, tmp_path):
    assert adapter.stat().st_size < (Path(job.options["models_dir"]) / "model.pt").stat().st_size
    words = {"dataset_dir": str(images), "method": "sdedit", "target": 0}
    ratios = {"none": {}, "off": {"merging_ratio": 0.0}, "half": {"merging_ratio": 0.5}, "whole": {}}
    results = {}
    for name, ratio in ratios.items():
        given = {} if name == "none" else {"adapter": str(adapter), **ratio}
        out = job.run(**words, **given, output_dir=str(tmp_path / name))
        results[name] = nib.load(out / "a" / "counterfactual.nii.gz").get_fdata()
    np.testing.assert_array_equal(results["off"], results["none"])
    assert np.abs(results["half"] - results["none"]).max() > 1e-4
    assert np.abs(results["whole"] - results["half"]).max() > 1e-4
    manifest = json.loads((tmp_path / "half" / "manifest.json").read_text())
    assert manifest["weights"]["adapter 1"]["path"] == str(adapter)
    with pytest.raises((RuntimeError, ValueError)) as error:
        job.run(**words, adapter=str(tmp_path / "no.safetensors"), output_dir=str(tmp_path / "no"))
    assert "no.safetensors does not exist" in str(root_cause(error.value))


CONTROL = {"controlnet_def#conditioning_embedding_num_channels": [8, 8, 8]}


def test_a_controlnet_is_trained_alone_and_a_method_follows_the_lungs_by_its_scale(job, images, tmp_path):
    models = Path(job.options["models_dir"])
    before = (models / "model.pt").read_bytes()
    rest = {name: value for name, value in job.options.items() if name not in ("num_inference_steps", "progress")}
    rest |= CONTROL | {"learning_rate": 0.02, "iterations": 4, "batch_size": 4, "num_train": 8, "num_val": 4}
    rest |= {"output_dir": str(tmp_path / "control"), "export_path": str(tmp_path / "control.pt"), "ema_decay": 0.01}
    files = [str(CONFIGS / name) for name in ("train.json", "train_control.json")]
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **rest)
    workflow.initialize()
    assert workflow.check_properties() == []
    network, masks = (workflow.parser.get_parsed_content(name) for name in ("network", "train#dataset"))
    assert set(masks[0]["mask"].unique().tolist()) <= {0.0, 1.0}
    start = {name: value.clone() for name, value in network.state_dict().items()}
    workflow.run()
    assert (models / "model.pt").read_bytes() == before
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, start[name])}
    assert moved
    assert all(name.startswith("unet.controlnet.") for name in moved)
    words = {"dataset_dir": str(images), "method": "sdedit", "target": 0}
    plain = job.run(**words, output_dir=str(tmp_path / "plain"))
    results = [nib.load(plain / "a" / "counterfactual.nii.gz").get_fdata()]
    for scale in (0.0, 1.0):
        more = CONTROL | {"weights#control": str(tmp_path / "control.pt"), "control_scale": scale}
        out = job.run("control.json", **words, **more, output_dir=str(tmp_path / f"scale_{scale:g}"))
        results.append(nib.load(out / "a" / "counterfactual.nii.gz").get_fdata())
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    assert np.abs(results[2] - results[0]).max() > 1e-4
    with pytest.raises((RuntimeError, ValueError)) as error:
        job.run("control.json", **words, **CONTROL, output_dir=str(tmp_path / "no"))
    assert "Train it with train_control.json" in str(root_cause(error.value))


def test_the_lungs_limit_the_change(job, images, tmp_path):
    out = job.run(dataset_dir=str(images), output_dir=str(tmp_path), region="subject", lung_margin=0)
    for row in job.scores(out):
        difference = nib.load(out / row["case"] / "difference.nii.gz").get_fdata()
        assert np.any(difference)
        if float(row["organ_fraction"]) < 0.9:
            assert np.any(difference == 0)


@pytest.mark.long
def test_the_command_takes_a_prompt_from_anywhere(job, images, tmp_path):
    words = job.command(dataset_dir=images, output_dir=tmp_path / "out", prompt="normal chest x-ray")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "normal chest x-ray" in json.dumps(manifest)


def test_required_properties_are_there(job, images, tmp_path):
    workflow = job.start(dataset_dir=str(images), output_dir=str(tmp_path / "out"))
    assert workflow.check_properties() == []
    assert isinstance(workflow.inferer.space, LatentSpace)


def test_networks_and_preprocessing_are_those_of_the_training():
    inference, train = (ConfigParser.load_config_file(CONFIGS / f"{name}.json") for name in ("inference", "train"))
    for name in ("network_def", "autoencoder_def", "segmenter_def", "classifier_def", "class_prompts", "spacing"):
        assert inference[name] == train[name], name
    assert inference["text_encoder_def"] | {"tokenizer": ""} == train["text_encoder_def"] | {"tokenizer": ""}
    ours = [step | {"keep": ""} for step in inference["preprocessing"]["transforms"]]
    assert ours == [step | {"keep": ""} for step in train["preprocessing"]["transforms"]]
    evaluation = ConfigParser.load_config_file(CONFIGS / "evaluate.json")
    assert evaluation["oracle_def"] == train["oracle_def"]


def test_the_paper_s_config_says_what_the_paper_says():
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("inference.json", "paper.json")])
    assert parser["spatial_size"] == [512, 512]
    assert parser["pretrained_model"]["results"] == "decoded"
    assert parser["pretrained_model"]["solver"] == "plms"
    assert parser["num_inference_steps"] == 75
    assert 4 <= parser["guidance_scale"] <= 7.5
    assert 0.55 <= parser["method_options"]["sdedit"]["strength"] <= 0.9
    assert parser["method_options"]["sdedit"]["subtract_reconstruction"] is False
    assert parser["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("prompts", "expected"), [(4, [(0, 120), (1, 50), (2, 50), (3, 50)]), (2, [(0, 120), (1, 150)])]
)
def test_dreambooth_shows_every_class_of_ones_own(prompts: int, expected: list[tuple[int, int]]) -> None:
    """The paper's four classes take 12, 5, 5 and 5 of 27 parts; with fewer classes the others share the 15."""
    parser = ConfigParser({"class_prompts": [f"class {index}" for index in range(prompts)]})
    overlay = ConfigParser.load_config_file(BUNDLE / "configs" / "train_dreambooth.json")
    parser.update({key: overlay[key] for key in ("iterations", "others", "phases")})
    assert parser.get_parsed_content("phases") == expected
