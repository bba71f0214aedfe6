# SPDX-License-Identifier: Apache-2.0
"""What every registered method promises, whatever its idea."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler
from torch import nn

from medcf.inferers import Counterfactual
from medcf.inferers.selection import method_arguments
from medcf.registry import METHODS
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

IDS = ["a", "b", "c", "d"]
NAMES = sorted(METHODS.names)
DIFFUSION = [name for name in NAMES if name not in ("unchanged", "attack")]
GUIDED = [name for name in DIFFUSION if "classifier_scales" in method_arguments(METHODS[name])[0]]
NUMBERS = ["num_iterations", "confidence_threshold", "seed", "num_inference_steps", "strength", "guidance_scale"]
NUMBERS += ["injection_scale", "downsample_factor", "stop_timestep", "depth", "num_inversion_steps"]
NUMBERS += ["inversion_iterations", "classifier_scales", "perceptual_scale", "guide_every", "epsilon", "num_steps"]
DOCS = Path(__file__).parents[2] / "docs" / "methods"


@pytest.fixture
def network(gaussian_network):
    """A denoiser that also knows the classes: class 1 is bright, and without a class it hardly denoises."""

    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.dark, self.bright = gaussian_network(-0.5, 0.2), gaussian_network(0.5, 0.2)
            self.plain = gaussian_network(0.0, 1.0)

        def forward(self, sample, timesteps, class_labels=None):
            if class_labels is None:
                return self.plain(sample, timesteps)
            shape = (-1, *[1] * (sample.ndim - 1))
            both = self.dark(sample, timesteps), self.bright(sample, timesteps)
            return torch.where(class_labels.reshape(shape) == 1, both[1], both[0])

    return Classes()


def test_all_baselines_and_controls_are_registered_with_a_page_each():
    baselines = {"diffice", "diffice_single", "dime", "fastdime", "universal", "sdedit", "unchanged", "attack"}
    baselines |= {"controlcg", "ddim_inversion", "ilvr"}
    assert baselines <= set(NAMES)
    for name in baselines:
        assert (DOCS / f"{name}.md").is_file()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", NUMBERS)
def test_text_in_place_of_a_number_is_refused_by_the_options_name(make_method, name, option):
    if option in method_arguments(METHODS[name])[0]:
        with pytest.raises(ValueError, match=f"^{option}='big' is not a .*number"):
            make_method(name, **{option: "big"})


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (DDPMScheduler, "give medcf.schedulers.adapt_scheduler.*a RespacedDDPMScheduler"),
        (DDIMScheduler, "give medcf.schedulers.adapt_scheduler.*a RespacedDDIMScheduler"),
        (PNDMScheduler, "give medcf.schedulers.adapt_scheduler"),
        (RFlowScheduler, "train the network with medcf.schedulers.RespacedDDIMScheduler"),
    ],
)
def test_monai_s_schedulers_are_refused_in_one_line_that_names_ours(make_method, name, foreign, ours):
    with pytest.raises(ValueError, match=f"scheduler is a {foreign.__name__}.*{ours}") as error:
        make_method(name, scheduler=foreign())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lost", ["for_chain", "start_timestep"])
def test_a_third_party_s_scheduler_is_told_what_it_lacks(make_method, lost):
    calls = ("set_timesteps", "timesteps_from", "start_timestep", "alpha_bar", "convert", "posterior", "for_chain")

    class Theirs:
        """Passes calls on to ours, without deriving from it."""

        def __init__(self):
            self.clip_sample, self.ours = True, RespacedDDPMScheduler(1000, variance_type="fixed_large")

        def __getattr__(self, name):
            if name in calls and name != self.__dict__.get("lost"):
                return getattr(self.__dict__["ours"], name)
            raise AttributeError(name)

    complete, partial = Theirs(), Theirs()
    partial.lost = lost
    assert make_method("diffice", scheduler=complete).timesteps == make_method("diffice").timesteps
    with pytest.raises(ValueError, match=f"scheduler is a Theirs, which lacks {lost}: add it, or .*RespacedScheduler"):
        make_method("diffice", scheduler=partial)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("volume", [False, True], ids=["2D", "3D"])
def test_flips_under_no_grad_in_two_and_three_dimensions(make_method, network, images, name, volume):
    inputs = images[..., None].expand(-1, -1, -1, -1, 4).contiguous() if volume else images
    method = make_method(name)
    with torch.no_grad():
        result = method.explain(inputs, network, IDS)
    assert isinstance(result, Counterfactual)
    assert result.image.shape == inputs.shape
    assert not result.image.requires_grad
    assert result.image.abs().max() <= 1
    wanted = method.classifier(result.image)
    torch.testing.assert_close(result.confidences[:, -1], wanted.softmax(1)[:, 1].detach())
    assert result.flipped.tolist() == (wanted.argmax(1) == 1).tolist()
    assert torch.equal(result.trajectory[:, 0], inputs)
    torch.testing.assert_close(result.trajectory[:, -1], result.image)
    if name == "unchanged":
        assert not result.flipped.any()
    else:
        assert result.flipped[:2].all()


@pytest.mark.parametrize(
    ("name", "forwards"),
    [
        ("diffice", 5),
        ("diffice_single", 5),
        ("dime", 15),
        ("fastdime", 5),
        ("universal", 5),
        ("sdedit", 5),
        ("controlcg", 5),
        ("ilvr", 20),
        ("ddim_inversion", 60),
        ("ddpm_inversion", 10),
        ("direct_inversion", 15),
        ("attack", 0),
        ("unchanged", 0),
    ],
)
def test_forwards_of_the_network_are_counted(make_method, network, images, name, forwards):
    calls = []
    network.register_forward_hook(lambda _module, _inputs, output: calls.append(len(output)))
    result = make_method(name).explain(images, network, IDS)
    assert result.num_function_evaluations.tolist() == [forwards] * 4
    assert result.total_function_evaluations == sum(calls) == 4 * forwards


@pytest.mark.parametrize("name", NAMES)
def test_result_depends_on_neither_batch_nor_order(make_method, network, images, name):
    method = make_method(name)
    together = method.explain(images, network).image
    torch.manual_seed(99)
    assert torch.equal(method.explain(images, network).image, together)
    torch.testing.assert_close(method.explain(images.flip(0), network).image.flip(0), together, rtol=0, atol=1e-5)
    for i in range(4):
        alone = method.explain(images[i : i + 1], network).image
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-5)


# DDIM draws nothing, and where the denoiser is linear what edit-friendly inversion draws cancels
INVERSIONS = ("ddim_inversion", "direct_inversion", "ddpm_inversion")


@pytest.mark.parametrize("name", [name for name in DIFFUSION if name not in INVERSIONS])
def test_another_seed_gives_another_counterfactual(make_method, network, images, name):
    first, second = (make_method(name, seed=seed).explain(images, network, IDS).image for seed in (0, 1))
    assert (first - second).abs().max() > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_input_of_the_target_class_comes_back_as_it_was(make_method, network, images, name):
    images[2] += 0.9
    result = make_method(name).explain(images, network, IDS)
    assert result.unchanged.tolist() == [False, False, True, False]
    assert not result.flipped[2]
    assert torch.equal(result.image[2], images[2])
    assert result.num_function_evaluations[2] == 0


@pytest.mark.parametrize("name", NAMES)
def test_geometry_of_the_input_is_kept(make_method, network, images, name):
    inputs = MetaTensor(images, meta={"affine": torch.diag(torch.tensor([2.0, 3, 1, 1]))})
    result = make_method(name)(inputs, network)
    assert isinstance(result, MetaTensor)
    torch.testing.assert_close(result.affine, inputs.affine)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", DIFFUSION)
def test_deterministic_and_stochastic_solvers_of_few_steps_reach_the_class(make_method, network, images, name, eta):
    scheduler = RespacedDDIMScheduler(1000, eta=eta)
    options = {"classifier_scales": (120,)} if name in GUIDED else {}
    if "strength" in method_arguments(METHODS[name])[0]:
        options["strength"] = 0.5
    method = make_method(name, scheduler=scheduler, num_inference_steps=8, **options)
    result = method.explain(images, network, IDS)
    assert result.flipped.all()
    assert torch.equal(method.explain(images, network, IDS).image, result.image)


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_left_as_they_were(make_method, network, images, name):
    network.train()
    method = make_method(name)
    method.classifier.train()
    method.explain(images, network)
    assert network.training
    assert method.classifier.training
    assert all(p.requires_grad and p.grad is None for p in method.classifier.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_device_changes_the_noise_and_not_the_method(make_method, network, images, name):
    options = {"num_iterations": 2} if name not in ("diffice_single",) else {}
    if name in ("diffice", "dime", "fastdime", "universal"):
        options |= {"classifier_scales": (6, 60), "batched_scales": True}
    result = make_method(name, **options).explain(images.cuda(), network.cuda(), IDS)
    assert result.image.is_cuda
    if name == "unchanged":
        assert not result.flipped.any()
    else:
        assert result.flipped[:2].all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sdedit", {"subtract_reconstruction": "no"}),
        ("diffice", {"clip_denoised": "false"}),
        ("diffice", {"seed": None}),
        ("diffice", {"num_iterations": True}),
        ("diffice", {"classifier_scales": [30, float("nan")]}),
        ("diffice", {"perceptual_scale": -1}),
        ("diffice", {"guidance_scale": float("nan")}),
        ("attack", {"epsilon": float("nan")}),
        ("ddim_inversion", {"num_inversion_steps": 0}),
    ],
)
def test_values_that_mean_nothing_are_refused_by_the_option_s_name(make_method, name, options):
    with pytest.raises(ValueError, match="|".join((*options, "num_inference_steps"))):
        make_method(name, **options)


@pytest.mark.parametrize(("value", "message"), [(2.0, "outside"), (float("nan"), "outside"), (1.0, "shape")])
def test_a_region_that_is_no_mask_is_refused(make_method, network, images, value, message):
    region = torch.full((1, 3 if message == "shape" else 1, 8, 8), value)
    with pytest.raises(ValueError, match=f"region.*{message}"):
        make_method("sdedit", region=region).explain(images, network, IDS)


def test_other_options_come_with_their_own_null_class(make_method, network, images):
    method = make_method("sdedit", null_class_labels=2, guidance_scale=3.0)
    other = method.with_options(null_class_labels=0)
    wanted = make_method("sdedit", null_class_labels=0, guidance_scale=3.0).explain(images, network, IDS).image
    assert torch.equal(other.explain(images, network, IDS).image, wanted)
    with pytest.raises(ValueError, match="null_class_labels"):
        method.with_options(null_class_labels=None)
