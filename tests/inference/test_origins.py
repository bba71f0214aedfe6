# SPDX-License-Identifier: Apache-2.0
"""Who sets an option of a method: a plugin's own defaults, the bundle, or the user."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import medcf
from medcf.inference import RunFolder
from medcf.inference.origins import describe_options, option_origins
from medcf.inferers import EditOptions, Method, StrengthOptions, edit
from medcf.registry import METHODS

BUNDLES = Path(__file__).parents[2] / "bundles"
NAMES = sorted(METHODS.names)


@dataclass(frozen=True, kw_only=True)
class OwnOptions(EditOptions, StrengthOptions):
    strength: float = 0.6
    pull: float = 0.2


class Own(Method):
    Options = OwnOptions
    needs_gradients = False
    run_pass = edit


class Plain:
    """A plugin without options of a dataclass."""

    def __init__(self, classifier: Any, strength: float = 0.6) -> None:
        self.classifier, self.strength = classifier, strength

    def __call__(self, inputs: Any, network: Any) -> Any:
        return inputs


@pytest.fixture(autouse=True)
def plugins():
    METHODS.add("own", "a plugin", Own)
    METHODS.add("plain", "another plugin", Plain)
    yield
    del METHODS.components["own"], METHODS.components["plain"]


def load(bundle: str, **overrides: Any) -> Any:
    return medcf.load(BUNDLES / bundle, progress=False, device="cpu", **overrides)


@pytest.mark.parametrize("name", ["own", "plain"])
def test_the_bundle_s_value_in_place_of_a_plugin_s_default_is_named(name: str) -> None:
    explain = load("diffice", method=name)
    origins = option_origins(explain.parser.get())
    assert origins["strength"] == {"value": 0.3, "from": "shared_options", "default": 0.6}
    assert "strength 0.3 (0.6)" in describe_options(name, origins)
    assert "classifier" not in describe_options(name, origins)  # a part is no option
    if name == "own":
        assert origins["pull"]["from"] == "default"
        assert "pull" not in describe_options(name, origins)


@pytest.mark.parametrize("name", ["own", "plain"])
@pytest.mark.parametrize(
    ("override", "origin"),
    [
        ({"inferer#strength": 0.2}, "inferer"),
        ({"method_options#{}#strength": 0.2}, "method_options"),
        ({"method_options#{}": {"strength": 0.2}}, "method_options"),
        ({"shared_options#strength": 0.2}, "shared_options"),
    ],
)
def test_a_user_s_option_reaches_a_plugin_and_is_named(name: str, override: dict[str, Any], origin: str) -> None:
    explain = load("diffice", method=name, **{key.format(name): value for key, value in override.items()})
    assert option_origins(explain.parser.get())["strength"] == {"value": 0.2, "from": origin, "default": 0.6}
    assert getattr(explain.inferer, "options", explain.inferer).strength == 0.2


def test_an_option_that_a_plugin_does_not_take_is_refused_however_it_is_given() -> None:
    for override in ({"method_options#own#strenght": 0.2}, {"method_options#own": {"strenght": 0.2}}):
        with pytest.raises(ValueError, match=r"'own' does not take the option 'strenght'\. Did you mean 'strength'"):
            load("diffice", method="own", **override)
    with pytest.raises(ValueError, match="Unknown option method_options#onw"):
        load("diffice", method="own", **{"method_options#onw": {"strength": 0.2}})


@pytest.mark.parametrize("bundle", ["diffice", "controlcg"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_every_method_is_what_it_runs_with(bundle: str, name: str) -> None:
    explain = load(bundle, method=name, **{"inferer#seed": 5})
    origins, options = option_origins(explain.parser.get()), explain.inferer.options
    assert origins["seed"] == {"value": 5, "from": "inferer", "default": 0}
    for option, each in origins.items():
        if each["value"] is not None:  # a variant sets it
            assert json.loads(json.dumps(getattr(options, option))) == each["value"], option


def test_one_guidance_scale_replaces_the_other() -> None:
    origins = option_origins(load("controlcg", method="ilvr", **{"inferer#guidance_w": 2}).parser.get())
    assert origins["guidance_w"] == {"value": 2, "from": "inferer", "default": None}
    assert origins["guidance_scale"]["from"] == "default"


def test_a_run_logs_and_records_what_the_bundle_sets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    explain = load("diffice", method="own", **{"inferer#pull": 0.5})
    folder = RunFolder(tmp_path, config=explain.parser.get())
    with caplog.at_level("INFO"):
        folder.open([])
    folder.release()
    assert "The bundle sets options of own in place of the method's own defaults" in caplog.text
    assert "strength 0.3 (0.6)" in caplog.text
    recorded = json.loads((tmp_path / "manifest.json").read_text())["options"]
    assert recorded["pull"] == {"value": 0.5, "from": "inferer", "default": 0.2}
    assert recorded["strength"]["from"] == "shared_options"


def test_a_config_without_a_method_has_no_options() -> None:
    assert option_origins({"target": 1}) == {}
    assert option_origins({"inferer": {"_target_": "some.Inferer", "strength": 1}}) == {}
    assert describe_options("own", {}) == ""
