# SPDX-License-Identifier: Apache-2.0
"""Every method is chosen by its name in the Diff-ICE bundle, on the demo's own networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from medcf.inferers import DiffICEInferer
from medcf.registry import METHODS
from medcf.runtime.error_report import root_cause

CONFIG = Path(__file__).parents[2] / "bundles" / "diffice" / "configs" / "inference.json"
NAMES = sorted(METHODS.names)

pytestmark = pytest.mark.bundle


def read(**options):
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.update({"bundle_root": str(CONFIG.parents[1]), "device": "cpu", "progress": False, **options})
    return parser


@pytest.mark.parametrize("name", NAMES)
def test_method_of_that_name_is_built_with_the_seed_of_the_command_line(name):
    parser = read(**{"method": name, "inferer#seed": 11})
    inferer = parser.get_parsed_content("inferer")
    assert type(inferer) is METHODS[name]
    assert inferer.options.seed == 11
    assert inferer.target == 1
    assert inferer.classifier is parser.get_parsed_content("classifier")
    assert name in parser["method_options"]


def test_default_is_diffice_with_the_options_of_the_inferer():
    inferer = read(**{"inferer#strength": 0.2, "inferer#batched_scales": True}).get_parsed_content("inferer")
    assert type(inferer) is DiffICEInferer
    assert len(inferer.timesteps) == 20
    assert inferer.options.num_iterations == 3
    assert inferer.options.batched_scales


def test_options_of_a_method_are_set_by_its_name():
    parser = read(**{"method": "sdedit", "method_options#sdedit#strength": 0.2, "inferer#known_noise": "shared"})
    inferer = parser.get_parsed_content("inferer")
    assert len(inferer.timesteps) == 20
    assert inferer.options.known_noise == "shared"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sdedid"}, "diffice, diffice_single, dime"),
        ({"inferer#sterngth": 0.2}, "Did you mean 'strength'"),
        ({"method": "dime", "method_options#dime#variant": "med"}, "'paper', 'published_code'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(options, message):
    parser = read(**options)
    assert parser["initialize"].index("@explainer") < len(parser["initialize"]) - 1  # the run folder is opened last
    with pytest.raises((ValueError, RuntimeError)) as error:
        parser.get_parsed_content("inferer")
    assert message in str(root_cause(error.value))


@torch.no_grad()
def test_class_of_the_demo_network_is_the_classifiers():
    """A short chain towards each class moves the same head to opposite sides."""
    from medcf.phantoms import draw_case

    image = (
        torch.from_numpy(draw_case("fetal_head", "val", 3, size=(64, 80), spacing=1.75)[1].image)[None, None] * 2 - 1
    )
    parser = read(**{"method": "sdedit", "inferer#num_inference_steps": 12})
    inferer, network = (parser.get_parsed_content(name) for name in ("inferer", "network"))
    before = inferer.classifier(image).argmax(1)
    result = inferer.explain(image, network, ["head"], target=1 - before)
    assert result.confidences[0, 1] > result.confidences[0, 0] + 0.1
