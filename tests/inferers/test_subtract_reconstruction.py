# SPDX-License-Identifier: Apache-2.0
"""The difference of two classes added to the input: exact on Gaussian classes, and only the class remains."""

from __future__ import annotations

import pytest
import torch

from medcf.inferers import create_method
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

MEANS, STD = (-0.3, 0.3, 0.0), 0.2  # of two classes and the null class


@pytest.fixture
def network(token_network):
    return token_network


@pytest.fixture
def volumes():
    """Three volumes of class 1, of mean 0.3."""
    return 0.3 + 0.1 * torch.randn(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def judge(image):
    bright = image.flatten(1).mean(1) * 5  # bright volumes are of class 1
    return torch.stack([-bright, bright], dim=1)


def make(name="controlcg", scheduler=None, target=0, subtract_reconstruction=True, **options):
    scheduler = RespacedDDIMScheduler(1000, prediction_type="v_prediction") if scheduler is None else scheduler
    defaults = {"num_inference_steps": 4, "progress": False, "subtract_reconstruction": subtract_reconstruction}
    return create_method(name, scheduler=scheduler, classifier=judge, target=target, **(defaults | options))


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("solver", [RespacedDDIMScheduler, RespacedDDPMScheduler])
def test_gaussian_classes_of_equal_variance_are_carried_over_voxel_by_voxel(
    gaussian_classes, volumes, solver, strength
):
    """Of N(m_1, s^2) the optimal transport to N(m_0, s^2) is x + (m_0 - m_1); from pure noise it is found exactly."""
    options = {"guidance_scale": 1.0, "injection_scale": 0.0, "clip_denoised": False, "num_inference_steps": 200}
    method = make(scheduler=solver(1000), strength=strength, **options)
    with_it = method.explain(volumes, gaussian_classes(MEANS, STD), list("abc")).image
    change = with_it - volumes
    torch.testing.assert_close(change, change.mean().expand_as(change), rtol=0, atol=1e-4)  # no voxel has its own
    if strength == 1:
        torch.testing.assert_close(float(change.mean()), MEANS[0] - MEANS[1], rtol=0.02, atol=0)
        without = (
            method.with_options(subtract_reconstruction=False)
            .explain(volumes, gaussian_classes(MEANS, STD), list("abc"))
            .image
        )
        assert (without - volumes - change).abs().mean() > 0.1  # somebody else's voxels
    else:
        assert MEANS[0] - MEANS[1] < float(change.mean()) < -0.1


@pytest.mark.parametrize("options", [{}, {"reference_condition": "null"}, {"injection_scale": 0.0}, {"strength": 0.5}])
def test_the_result_is_the_input_and_the_difference_of_two_runs(network, volumes, options):
    options = {"guidance_scale": 3.0, "clip_denoised": False, **options}
    plain = make(subtract_reconstruction=False, **options)
    wanted, source = (plain.explain(volumes, network, list("abc"), target=k, run_unchanged=True).image for k in (0, 1))
    assert (wanted - source).abs().max() > 1e-3
    result = make(**options).explain(volumes, network, list("abc")).image
    inside = (wanted.abs() < 1) & (source.abs() < 1)  # where a plain run did not clip its output
    expected = (volumes + wanted - source).clamp(-1, 1)
    torch.testing.assert_close(result[inside], expected[inside], rtol=0, atol=1e-4)
    assert inside.float().mean() > 0.3


def test_towards_its_own_class_an_input_stays_as_it_is(network, volumes):
    result = make(target=1).explain(volumes, network, list("abc"), run_unchanged=True)
    torch.testing.assert_close(result.image, volumes, rtol=0, atol=1e-5)
    assert result.num_function_evaluations.tolist() == [4 * 6] * 3  # it did run


def test_the_source_class_is_what_the_classifier_sees_in_each_input(network, volumes):
    mixed = torch.cat([volumes[:1], -volumes[1:2]])  # of classes 1 and 0
    plain = make(subtract_reconstruction=False, clip_denoised=False)
    runs = [plain.explain(mixed, network, ["a", "b"], target=k, run_unchanged=True).image for k in (0, 1)]
    difference = runs[0] - runs[1]
    result = make(target="opposite", clip_denoised=False).explain(mixed, network, ["a", "b"])
    assert result.target.tolist() == [0, 1]
    expected = (mixed + torch.stack([difference[0], -difference[1]])).clamp(-1, 1)
    inside = (runs[0].abs() < 1) & (runs[1].abs() < 1)
    torch.testing.assert_close(result.image[inside], expected[inside], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 7), ({"reference_condition": "null"}, 5), ({"injection_scale": 0.0}, 4), ({"guidance_scale": 1.0}, 4)],
)
def test_both_classes_run_in_one_forward_and_share_the_reference(network, volumes, options, rows):
    sizes = []
    handle = network.register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
    result = make(**options).explain(volumes, network)
    handle.remove()
    assert sizes == [3 * rows] * 4
    assert result.num_function_evaluations.tolist() == [4 * rows] * 3


def test_a_memory_budget_splits_pairs_and_changes_nothing(network, volumes):
    whole = make().explain(volumes, network, list("abc")).image
    sizes = []
    handle = network.register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
    split = make(memory_budget=1e-6).explain(volumes, network, list("abc")).image
    handle.remove()
    assert set(sizes) == {7}
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-4)


def test_several_targets_and_scales_are_those_of_separate_runs(network, volumes):
    together = make().explain_targets(volumes, network, [0], [1.0, 3.0], sample_ids=list("abc"))
    for (target, scale), result in together.items():
        alone = make(target=target, guidance_scale=scale).explain(volumes, network, list("abc")).image
        torch.testing.assert_close(result.image, alone, rtol=0, atol=1e-4)


def test_targets_and_images_share_the_chain_to_the_own_class(network, volumes):
    """2 K rows of targets, 2 of the own class and 1 reference; second passes start from other images."""
    sizes = []
    handle = network.register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
    method = make(reference_condition="null", num_iterations=2, strength=0.5)
    results = method.explain_targets(volumes, network, [0, 1], sample_ids=list("abc"), run_unchanged=True)
    handle.remove()
    assert sizes == [3 * (2 * 2 + 2 + 1)] * 2 + [3 * (2 * 4 + 1)] * 2
    for (target, _w), result in results.items():
        options = {"reference_condition": "null", "num_iterations": 2, "strength": 0.5}
        alone = make(target=target, **options).explain(volumes, network, list("abc"), run_unchanged=True).image
        torch.testing.assert_close(result.image, alone, rtol=0, atol=1e-4)
    total = sum(result.num_function_evaluations for result in results.values())
    assert total.tolist() == [2 * 7 + 2 * 9] * 3


def test_a_second_pass_starts_where_the_first_ended(network, volumes):
    options = {"strength": 0.5, "clip_denoised": False, "guidance_scale": 4.0}
    twice = make(num_iterations=2, **options).explain(volumes, network, list("abc"))
    once = make(**options).explain(volumes, network, list("abc"))
    torch.testing.assert_close(twice.trajectory[:, 1], once.image, rtol=0, atol=1e-4)
    assert (twice.image - once.image).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ilvr", {"downsample_factor": 2, "stop_timestep": 500, "clip_denoised": False}),
        ("sdedit", {"strength": 0.5, "clip_denoised": False, "keep_background": True}),
        ("ddim_inversion", {"depth": 0.5, "guidance_scale": 2.0}),
        ("ddpm_inversion", {"clip_denoised": False}),
        ("direct_inversion", {"clip_denoised": False}),
    ],
)
def test_every_conditional_method_takes_it(network, volumes, name, options):
    options = {"null_class_labels": 2, **options}
    plain = make(name, subtract_reconstruction=False, **options)
    wanted, source = (plain.explain(volumes, network, list("abc"), target=k, run_unchanged=True).image for k in (0, 1))
    assert (wanted - source).abs().max() > 1e-3
    result = make(name, **options).explain(volumes, network, list("abc")).image
    inside = (wanted.abs() < 1) & (source.abs() < 1)
    expected = (volumes + wanted - source).clamp(-1, 1)
    torch.testing.assert_close(result[inside], expected[inside], rtol=0, atol=5e-4)


def test_the_own_class_may_be_given_in_place_of_the_predicted_one(network, volumes):
    plain = make(subtract_reconstruction=False, clip_denoised=False)
    wanted, source = (plain.explain(volumes, network, list("abc"), target=k, run_unchanged=True).image for k in (0, 2))
    result = make(own_class=2, clip_denoised=False).explain(volumes, network, list("abc")).image
    inside = (wanted.abs() < 1) & (source.abs() < 1)
    expected = (volumes + wanted - source).clamp(-1, 1)
    torch.testing.assert_close(result[inside], expected[inside], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="own_class=-1 is not a class"):
        make(own_class=-1)


def test_what_an_inversion_measures_is_that_of_the_way_to_the_target(network, volumes, caplog):
    options = {"depth": 0.5, "null_class_labels": 2}
    plain, pair = (
        make("ddim_inversion", subtract_reconstruction=on, **options).explain(volumes, network, list("abc"))
        for on in (False, True)
    )
    torch.testing.assert_close(pair.extras["round_trip_error"], plain.extras["round_trip_error"], rtol=0, atol=1e-4)
    assert not {"own", "source", "guidance_scale"} & pair.extras.keys()


def test_the_background_stays_black(network, volumes):
    volumes = volumes.clone()
    volumes[:, :, :2] = -1
    result = make().explain(volumes, network, list("abc"), run_unchanged=True).image
    assert bool((result[:, :, :2] == -1).all())
