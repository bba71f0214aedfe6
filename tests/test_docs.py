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


@pytest.mark.parametrize("page", ["conditions.md", "phantoms.md", "stable_diffusion.md"])
def test_the_page_s_examples_print_what_it_says(page: str, tmp_path: Path, monkeypatch) -> None:
    if page == "stable_diffusion.md":
        for package in ("diffusers", "transformers"):
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
