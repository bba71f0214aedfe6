# SPDX-License-Identifier: Apache-2.0
"""An overlay that is run alone says what it is to be laid over, and what to type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medcf.bundle import find_bundle_root
from medcf.bundle.overlay import overlay_of

RUN = ["/x/monai/bundle/__main__.py", "run", "--config_file"]


@pytest.mark.parametrize(
    ("bundle", "name"), [("diffice", "evaluate"), ("controlcg", "evaluate"), ("controlcg", "evaluate_labeled")]
)
def test_the_last_line_of_an_overlay_alone_says_so(bundle: str, name: str) -> None:
    configs = Path(find_bundle_root(bundle)) / "configs"
    words = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs / f"{name}.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"{name}.json is an overlay of inference.json" in last
    assert f"['{configs / 'inference.json'}','{configs / f'{name}.json'}']" in last


def test_over_its_base_an_overlay_runs() -> None:
    overlay_of("inference.json", argv=[*RUN, "['a/inference.json','a/paper.json','a/evaluate.json']"])
    overlay_of("inference.json", argv=["python"])
    with pytest.raises(ValueError, match=r"paper.json is an overlay of train.json and does not run alone"):
        overlay_of("train.json", argv=[*RUN, "a/paper.json"])
