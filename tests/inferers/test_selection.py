# SPDX-License-Identifier: Apache-2.0
"""Methods by name: strict creation, and one set of arguments that serves all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.bundle import ConfigParser

from medcf.inferers import DiffICEInferer, GuidanceOptions, SDEditInferer, create_method, select_method
from medcf.inferers.selection import method_arguments
from medcf.networks import Conditioner
from medcf.registry import METHODS
from medcf.schedulers import RespacedDDPMScheduler


@pytest.fixture
def shared(brightness):
    """What a config gives to whichever method is chosen."""
    return {
        "scheduler": RespacedDDPMScheduler(1000), "classifier": brightness(), "target": 1, "perceptual": None,
        "num_inference_steps": 20, "strength": 0.3, "num_iterations": 3, "classifier_scales": [30, 60],
        "null_class_labels": 2, "confidence_threshold": 0.9, "seed": 3, "progress": False,
    }  # fmt: skip


def test_method_is_made_by_name_and_strictly(brightness):
    needed = {"scheduler": RespacedDDPMScheduler(1000), "classifier": brightness(), "target": 1}
    inferer = create_method("diffice", **needed, seed=3)
    assert isinstance(inferer, DiffICEInferer)
    assert inferer.options.seed == 3
    with pytest.raises(ValueError, match="attack, controlcg, ddim_inversion, ddpm_inversion, diffice, diffice_single"):
        create_method("diffrice")
    with pytest.raises(ValueError, match="typo"):
        create_method("diffice", **needed, typo=3)
    with pytest.raises(ValueError, match="num_steps"):
        create_method("diffice", **needed, num_steps=3)  # the attack's


@pytest.mark.parametrize("name", sorted(METHODS.names))
def test_shared_arguments_serve_every_method(shared, name):
    method = select_method(name, shared=shared)
    assert method.options.seed == 3
    assert method.classifier is shared["classifier"]
    if isinstance(method.options, GuidanceOptions):
        assert method.options.scales == (30, 60)
        assert method.conditioner.null_class_labels == 2
    assert method.options.num_iterations == (1 if name in ("diffice_single", "unchanged") else 3)


def test_what_is_given_goes_before_own_options_and_these_before_shared_ones(shared):
    options = {"sdedit": {"strength": 0.7, "guidance_scale": 5}, "dime": {"variant": "published_code"}}
    method = select_method("sdedit", options=options, shared=shared)
    assert isinstance(method, SDEditInferer)
    assert (method.options.strengths, method.options.scale) == ((0.7,), 5)
    method = select_method("sdedit", options=options, shared=shared, strength=0.9)
    assert (method.options.strengths, method.options.scale) == ((0.9,), 5)
    assert select_method("diffice", options=options, shared=shared).options.strengths == (0.3,)
    assert select_method("dime", options=options, shared=shared).options.variant == "published_code"


@pytest.mark.parametrize(("given", "scale"), [({"guidance_w": 4}, 5.0), ({"guidance_scale": 4}, 4.0), ({}, 2.5)])
def test_the_papers_w_takes_the_place_of_a_scale_of_the_config_and_the_reverse(shared, given, scale):
    options = {"controlcg": {"guidance_w": 1.5}}
    method = select_method("controlcg", options=options, shared=shared | {"guidance_scale": 9}, **given)
    assert method.options.scale == scale


def test_arguments_that_no_method_knows_are_refused_with_the_nearest(shared):
    with pytest.raises(ValueError, match=r"'sterngth'\. Did you mean 'strength'"):
        select_method("diffice", shared=shared, sterngth=0.2)
    with pytest.raises(ValueError, match=r"'sterngth'\. Did you mean 'strength'"):
        select_method("diffice", shared=shared | {"sterngth": 0.2})
    assert select_method("unchanged", shared=shared | {"epsilon": 0.2}).options.seed == 3  # the attack knows it
    with pytest.raises(ValueError, match=r"'unchanged' does not take the option 'epsilon'.*There are: .*classifier"):
        select_method("unchanged", shared=shared, epsilon=0.2)
    with pytest.raises(ValueError, match=r"'sdedit' does not take the option 'classifier_scales'"):
        select_method("sdedit", options={"sdedit": {"classifier_scales": 3}}, shared=shared)
    with pytest.raises(ValueError, match="'sdedid' is not one of the registered"):
        select_method("sdedit", options={"sdedid": {}}, shared=shared)
    with pytest.raises(ValueError, match="attack, controlcg"):
        select_method("sdedid", shared=shared)


def test_a_plugin_with_its_own_constructor_takes_its_part(shared):
    class Negative:
        def __init__(self, scheduler=None, target=None, strength=1.0):
            self.strength = strength

    class Anything:
        def __init__(self, **options):
            self.options = options

    METHODS.add("negative", "test", Negative)
    METHODS.add("anything", "test", Anything)
    try:
        assert select_method("negative", shared=shared).strength == 0.3
        assert select_method("anything", shared=shared, more=1).options == {**shared, "more": 1}
    finally:
        for name in ("negative", "anything"):
            del METHODS.components[name]


def test_arguments_of_parents_are_known_and_fixed_ones_are_not():
    known, takes_any = method_arguments(METHODS["diffice"])
    assert {"scheduler", "gradient", "guide_every", "strength", "num_iterations", "seed"} <= known
    assert not takes_any
    assert method_arguments(METHODS["diffice_single"])[0] == known - {"num_iterations"}
    assert "scheduler" not in method_arguments(METHODS["attack"])[0]


def test_a_config_changes_the_method_by_its_name(shared):
    config = {
        "method": "diffice",
        "method_options": {"attack": {"epsilon": 0.25}},
        "inferer": {
            "_target_": "medcf.inferers.select_method", "name": "@method", "options": "@method_options",
            "shared": {
                "target": 1, "scheduler": "$@parts['scheduler']", "classifier": "$@parts['classifier']",
                "confidence_threshold": None, "strength": 0.3,
            },
        },
    }  # fmt: skip
    for name, attribute in (("diffice", "classifier_scales"), ("attack", "epsilon")):
        parser = ConfigParser(config | {"parts": {k: shared[k] for k in ("scheduler", "classifier")}})
        parser.update({"method": name, "inferer#seed": 7})
        method = parser.get_parsed_content("inferer")
        assert method.options.seed == 7
        assert hasattr(method.options, attribute)


@pytest.mark.parametrize("name", sorted(METHODS.names))
def test_a_prompt_that_a_method_would_ignore_is_refused(shared, name):
    contexts = torch.zeros(2, 3, 8)
    shared["conditioner"] = Conditioner(contexts=contexts, null_context=contexts[:1], by_class=False)
    prompted = {**shared, "conditioner": replace(shared["conditioner"], prompt=contexts[:1])}
    select_method(name, shared=shared)
    if name not in ("diffice", "diffice_single", "dime", "fastdime", "universal", "attack"):
        select_method(name, shared=prompted)
        return
    with pytest.raises(ValueError, match=f"{name!r} reads no prompt"):
        select_method(name, shared=prompted)
    if name != "attack":
        select_method(name, shared=prompted, class_labels="target")
