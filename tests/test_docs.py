# SPDX-License-Identifier: Apache-2.0
"""The pages' examples run as they stand there, and print what they say."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

import medcf
from medcf.sampling import LatentSpace
from tests import stable_diffusion

ROOT = Path(__file__).parents[1]
#: Words of before the methods were composed of parts.
GONE = r"CounterfactualInferer|ChainInferer|GuidedInferer|ConditionalInferer|InjectedDenoiser|plan_rows"


def blocks(page: str, kind: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", ["conditions.md", "lora.md", "phantoms.md", "stable_diffusion.md"])
def test_the_page_s_examples_print_what_it_says(page: str, tmp_path: Path, monkeypatch) -> None:
    if page in ("lora.md", "stable_diffusion.md"):
        for package in ("diffusers", "transformers", "peft"):
            pytest.importorskip(package)
        monkeypatch.chdir(tmp_path)
        stable_diffusion.write(Path("stable-diffusion"))
        stable_diffusion.bert(Path("RadBERT"))
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for code in blocks(page, "python"):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, page, "exec", dont_inherit=True), names)
        said = re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.MULTILINE)
        assert not said or printed.getvalue().splitlines() == said


def test_the_page_s_overlay_puts_the_method_of_a_bundle_into_latents(tmp_path: Path, monkeypatch) -> None:
    (overlay,) = map(json.loads, blocks("conditions.md", "json"))
    autoencoder = ConfigParser({"net": overlay["autoencoder_def"]}).get_parsed_content("net")
    monkeypatch.chdir(tmp_path)
    torch.save(autoencoder.state_dict(), "autoencoder.pt")
    Path("overlay.json").write_text(json.dumps(overlay), encoding="utf-8")
    parser = ConfigParser()
    parser.read_config([str(ROOT / "bundles" / "diffice" / "configs" / "inference.json"), "overlay.json"])
    parser["bundle_root"] = str(ROOT / "bundles" / "diffice")
    inferer, network = (parser.get_parsed_content(name) for name in ("inferer", "network_def"))
    assert isinstance(inferer.space, LatentSpace)
    assert inferer.options.region == "subject"
    image = torch.rand(1, 1, 64, 80) - 0.5
    short = inferer.with_options(num_inference_steps=4, strength=0.5, num_iterations=1, classifier_scales=(1,))
    assert short(image, network.eval()).shape == image.shape


def test_the_page_s_overlay_trains_stable_diffusion_by_a_bundle_s_config(tmp_path: Path, monkeypatch) -> None:
    for package in ("diffusers", "transformers"):
        pytest.importorskip(package)
    (overlay,) = blocks("stable_diffusion.md", "json")
    monkeypatch.chdir(tmp_path)
    stable_diffusion.write(Path("stable-diffusion"))
    stable_diffusion.bert(Path("RadBERT"))
    Path("overlay.json").write_text(overlay, encoding="utf-8")
    parser = ConfigParser()
    parser.read_config([str(ROOT / "bundles" / "valdmd" / "configs" / "train.json"), "overlay.json"])
    parser.update({"bundle_root": str(ROOT / "bundles" / "valdmd"), "device": "cpu"})
    prepare, network, space = (parser.get_parsed_content(name) for name in ("prepare_batch", "network", "space"))
    assert network.text_encoder is prepare.text_encoder
    latents = space.encode(torch.zeros(2, 1, 16, 16))  # the training's dataset holds them
    images, target, _, given = prepare({"image": latents, "caption": ["normal", "covid"]})
    assert torch.equal(target, given["noise"])
    network(images, given["timesteps"], given["condition"]).sum().backward()
    assert network.text_encoder.model.embeddings.word_embeddings.weight.grad.any()


def test_the_page_s_overlay_adapts_stable_diffusion_by_a_bundle_s_config(tmp_path: Path, monkeypatch) -> None:
    for package in ("diffusers", "transformers", "peft"):
        pytest.importorskip(package)
    (overlay,) = blocks("lora.md", "json")
    monkeypatch.chdir(tmp_path)
    stable_diffusion.write(Path("stable-diffusion"))
    Path("overlay.json").write_text(overlay, encoding="utf-8")
    parser = ConfigParser()
    configs = ROOT / "bundles" / "valdmd" / "configs"
    parser.read_config([str(configs / "train.json"), str(configs / "train_lora.json"), "overlay.json"])
    parser.update({"bundle_root": str(ROOT / "bundles" / "valdmd"), "device": "cpu"})
    prepare, network, adapters = (parser.get_parsed_content(name) for name in ("prepare_batch", "network", "adapters"))
    assert network is adapters.network
    latents = parser.get_parsed_content("space").encode(torch.zeros(2, 1, 16, 16))
    images, _, _, given = prepare({"image": latents, "caption": ["normal", "covid"]})
    network(images, given["timesteps"], given["condition"]).sum().backward()
    trained = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert trained
    assert all("attn2" in name and "lora_" in name for name in trained)


def test_no_page_uses_words_of_earlier_versions() -> None:
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("bundles/*/docs/*.md"),
    ]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(GONE, text), page
        for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            assert not re.search(r"Denoiser\([^)]*class_labels=", code), page
            compile(code, page.name, "exec")


@pytest.mark.bundle
@pytest.mark.parametrize(
    ("bundle", "options"),
    [
        ("diffice", {"method": "sdedit", "shared_options#num_inference_steps": 4, "seeds": 2}),
        ("controlcg", {"method": "ddim_inversion", "num_inference_steps": 4}),
    ],
)
def test_every_column_of_the_scores_is_explained(tmp_path: Path, bundle: str, options: dict[str, object]) -> None:
    explain = medcf.load(bundle, progress=False, device="cpu", **{"listing#demo_count": 1}, **options)
    (result,) = explain.run(None, tmp_path)
    assert isinstance(result, medcf.CaseResult), result
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file))
    page = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    table = page.partition("### Columns of scores.csv")[2].partition("\n### ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    explained = [name for cell in cells for name in re.findall(r"`(.+?)`", cell)]
    assert [name for name in columns if name not in explained] == []
    several = {"num_seeds", "seeds_flipped", "confidence_expected", "mean_expected_difference", "mean_spread"}
    assert several.issubset(columns) == ("seeds" in options)
    assert several.issubset(explained)


def test_no_generated_section_of_a_page_is_empty() -> None:
    marked = re.compile(r"<!-- ([\w.-]+): begin -->(.*?)<!-- \1: end -->", re.DOTALL)
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(ROOT.glob("docs/**/*.md"))}
    found = [(page, part) for page, text in pages.items() for part in marked.finditer(text)]
    assert len(found) > 10  # the pages still mark their sections this way
    assert [f"{page.relative_to(ROOT)}: {part[1]}" for page, part in found if not part[2].strip()] == []
