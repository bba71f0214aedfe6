# SPDX-License-Identifier: Apache-2.0
"""What every method does on tiny networks, in pixels and in latents, in two and three dimensions, plugins included."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from medcf.inferers import Method, with_explain
from medcf.inferers.options import option_of
from medcf.networks import BundleUNet
from medcf.registry import METHODS
from medcf.sampling import Hook, LatentSpace, PixelSpace
from tests.inferers.tiny import Blocks, Brightness

IDS = ["a", "b", "c"]
PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLUGINS = dict(zip(("my_method", "pulled_edit"), re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), strict=True))
NAMES = [*sorted(METHODS.names), *PLUGINS]
CONTROLS = ("unchanged", "attack", "my_method")


@pytest.fixture(scope="module", autouse=True)
def plugins():
    """The methods of CONTRIBUTING, as they stand there."""
    for name, code in PLUGINS.items():
        exec(compile(code, name, "exec", dont_inherit=True), {"__name__": name})
    yield
    for name in PLUGINS:
        del METHODS.components[name]


def test_the_page_s_method_is_short():
    assert len(PLUGINS["pulled_edit"].splitlines()) <= 36


class Setting:
    """Tiny networks of one number of dimensions, in one space."""

    def __init__(self, dims, latent):
        torch.manual_seed(0)
        channels = 2**dims if latent else 1
        options = {"channels": (8, 8), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 4}
        self.network = BundleUNet(dims, channels, channels, num_head_channels=4, num_class_embeds=3, **options).eval()
        for weight in self.network.parameters():
            if weight.ndim > 1 and not weight.any():  # a fresh network predicts 0 whatever it sees
                nn.init.normal_(weight, std=0.1)
        self.autoencoder = Blocks(dims) if latent else None
        self.space = LatentSpace(self.autoencoder, range=(-2.0, 2.0)) if latent else PixelSpace()
        noise = torch.rand(3, 1, *(8,) * dims, generator=torch.Generator().manual_seed(1)) * 0.4 - 0.2
        self.images = noise - torch.tensor([0.1, 0.3, 0.5]).reshape(3, *(1,) * (dims + 1))


@pytest.fixture(
    scope="module", params=[(2, False), (3, False), (2, True), (3, True)], ids=["2D", "3D", "2D-latent", "3D-latent"]
)
def setting(request):
    return Setting(*request.param)


@pytest.fixture
def build(make_method, setting):
    def make(name, **options):
        given = {"classifier": Brightness(), "null_class_labels": 2, "space": setting.space, "memory_budget": None}
        known = make_method.known(name)
        method = make_method(name, **({key: value for key, value in given.items() if key in known} | options))
        return with_explain(method, given["classifier"], 1)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_images_come_back_finite_reproducible_and_independent_of_their_batch(build, setting, name):
    method = build(name)
    result = method.explain(setting.images, setting.network, IDS)
    assert result.image.shape == setting.images.shape
    assert result.image.isfinite().all()
    assert result.image.abs().max() <= 1
    assert torch.equal(result.trajectory[:, 0], setting.images)
    assert torch.equal(result.trajectory[:, -1], result.image)
    assert torch.equal(method.explain(setting.images, setting.network, IDS).image, result.image)
    for place, one in enumerate(IDS):
        alone = method.explain(setting.images[place : place + 1], setting.network, [one]).image
        # walked up and down by a network that knows nothing, rounding grows
        atol = 5e-3 if name == "ddim_inversion" else 1e-4
        torch.testing.assert_close(alone, result.image[place : place + 1], rtol=0, atol=atol)
    if name != "unchanged":
        assert result.difference.abs().amax() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_every_row_that_passes_through_the_network_is_counted(build, setting, name):
    rows = []
    handle = setting.network.register_forward_hook(lambda _module, _inputs, output: rows.append(len(output)))
    result = build(name).explain(setting.images, setting.network, IDS)
    handle.remove()
    assert result.total_function_evaluations == sum(rows)
    assert bool(rows) == (name not in CONTROLS)


@pytest.mark.parametrize("name", NAMES)
def test_each_image_may_have_a_seed_of_its_own(build, setting, name):
    method = build(name)
    if not isinstance(method, Method):
        pytest.skip("its results are derived from its call")
    mixed = method.explain(setting.images, setting.network, IDS, seeds=[5, 6, 5]).image
    for seed, rows in ((5, [0, 2]), (6, [1])):
        alone = method.with_options(seed=seed).explain(setting.images, setting.network, IDS).image
        torch.testing.assert_close(mixed[rows], alone[rows], rtol=0, atol=1e-4)
    assert option_of(method, "seed") == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_outside_the_region_is_kept_bit_for_bit(build, setting, name):
    mask = torch.zeros(1, 1, *setting.images.shape[2:])
    mask[..., :4] = 1.0
    mask[..., 4] = 0.5
    if not issubclass(METHODS[name], Method):
        pytest.skip("it has no region")
    method = build(name, region=mask)
    result = method.explain(setting.images, setting.network, IDS)
    assert torch.equal(result.image[..., 5:], setting.images[..., 5:])
    if name != "unchanged":
        assert (result.image != setting.images)[..., :4].any()


@pytest.mark.parametrize("name", NAMES)
def test_pixels_beyond_the_range_are_kept_outside_the_region(build, setting, name):
    if not issubclass(METHODS[name], Method):
        pytest.skip("it has no region")
    images, mask = setting.images.clone(), torch.zeros(1, 1, *setting.images.shape[2:])
    images[..., 7] = 1.2  # an interpolation overshoots
    mask[..., :4] = 1.0
    method = build(name, region=mask.bool())
    assert torch.equal(method.explain(images, setting.network, IDS).image[..., 4:], images[..., 4:])


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_with_the_list_of_the_right_ones(build, name):
    with pytest.raises(ValueError, match=r"(sead.*There are: .*seed|rejects.*sead)"):
        build(name, sead=3)


class Depth(Hook):
    """Counts the calls from ``explain`` to the loop."""

    def after_step(self, sample, step):
        names = [frame.function for frame in inspect.stack()]
        self.calls = names.index("explain") - names.index("denoise")
        return sample


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CONTROLS])
def test_from_explain_to_the_loop_are_at_most_four_calls(build, setting, name, monkeypatch):
    method, seen = build(name), Depth()
    kept = type(method).kept
    monkeypatch.setattr(type(method), "kept", lambda self, chain: [*kept(self, chain), seen])
    method.explain(setting.images, setting.network, IDS)
    assert seen.calls <= 4


@pytest.mark.parametrize("name", NAMES)
def test_no_method_stands_under_more_than_one_base_of_ours(name):
    if issubclass(METHODS[name], Method):
        assert METHODS[name].__bases__ == (Method,)
