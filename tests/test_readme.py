# SPDX-License-Identifier: Apache-2.0
"""What the README shows works, and is what the bundle does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from medcf.phantoms import write_demo
from medcf.runtime.performance import autocast

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_example_gives_the_bundles_counterfactual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    record = write_demo(tmp_path, split="demo", count=1, label=0, formats=("png",))[0]
    Path(record["path"]).rename(tmp_path / "head.png")
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)  # the README's own words
    parser = ConfigParser()
    parser.read_config(ROOT / "bundles" / "diffice" / "configs" / "inference.json")
    parser["device"] = "cpu"
    inferer = parser.get_parsed_content("inferer")
    with autocast("cpu", enabled=parser.get_parsed_content("amp")):
        expected = inferer.explain(names["image"][None], parser.get_parsed_content("network"), sample_ids=["head"])
    torch.testing.assert_close(torch.as_tensor(names["result"].image), torch.as_tensor(expected.image))
    assert bool(expected.flipped.all())


def test_every_page_the_readme_and_the_docs_link_to_exists() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("bundles/*/docs/*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
