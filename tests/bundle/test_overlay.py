# SPDX-License-Identifier: Apache-2.0
"""An overlay that is run alone says so, and what to write instead."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import monai
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from medcf.bundle import expect_base
from medcf.bundle.overlay import config_chain
from medcf.runtime.error_report import root_cause

CONFIGS = sorted((Path(__file__).parents[2] / "bundles").glob("*/configs/*.json"))
OVERLAYS = [path for path in CONFIGS if len(config_chain(path)) > 1]


@pytest.fixture(autouse=True)
def same_hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.mark.parametrize("configs", [["train.json", "b.json"], ["inference.json", "a.json", "b.json", "c.json"]])
def test_an_overlay_over_one_of_its_bases_is_taken(configs):
    expect_base(configs, "b.json", "train.json", "inference.json")


@pytest.mark.parametrize("configs", [["b.json"], ["a.json", "b.json"], ["b.json", "train.json"]])
def test_an_overlay_without_its_base_before_it_is_refused(configs):
    with pytest.raises(ValueError, match=r"b\.json is an overlay over train\.json or inference\.json"):
        expect_base(configs, "b.json", "train.json", "inference.json")


def test_the_message_holds_the_command_of_the_user(monkeypatch):
    program = str(Path(monai.__file__).parent / "bundle" / "__main__.py")
    monkeypatch.setattr(sys, "argv", [program, "run", "--config_file", "['x/b.json','x/c.json']"])
    with pytest.raises(ValueError, match=r"""--config_file "\['x/train\.json','x/b\.json','x/c\.json'\]"$"""):
        expect_base(["b.json", "c.json"], "b.json", "train.json")


@pytest.mark.filterwarnings("ignore:Can't merge entry")
@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_every_overlay_that_stands_alone_says_what_it_needs(path):
    workflow = ConfigWorkflow(str(path), logging_file=False)
    with pytest.raises(RuntimeError) as error:
        workflow.initialize()
    assert f"{path.name} is an overlay over {config_chain(path)[-2].name}" in str(root_cause(error.value))


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_every_overlay_is_taken_over_its_bases(path):
    chain = config_chain(path)
    parser = ConfigParser()
    parser.read_config([str(each) for each in chain])
    assert parser["configs"] == [each.name for each in chain]
    calls = [text for text in parser["initialize"] if "expect_base" in text]
    assert len(calls) >= 1
    for call in calls:
        parser.ref_resolver.reset()
        parser["check"] = call
        parser.get_parsed_content("check")


def test_what_is_no_overlay_runs_alone():
    alone = {path.name for path in CONFIGS if path not in OVERLAYS and "configs" in json.loads(path.read_text())}
    assert alone == {"train.json", "inference.json"}
