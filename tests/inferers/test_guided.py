# SPDX-License-Identifier: Apache-2.0
"""What guided methods share: scales, passes, early exit, batches, states and refusals; on Diff-ICE."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medcf.guidance import PerceptualFeatures
from medcf.inferers import DiffICEInferer
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

IDS = ["a", "b", "c", "d"]


def test_class_moves_to_the_target_and_more_with_every_scale(make, network, images):
    changes = []
    for scale in (0, 2, 6, 20):
        result = make(classifier_scales=scale, num_iterations=1).explain(images, network, IDS)
        changes.append(result.confidences[:, 1])
    for weaker, stronger in itertools.pairwise(changes):
        assert (stronger > weaker).all()
    assert changes[0].max() < 0.5 < 0.75 < changes[-1].min()


def test_perceptual_term_keeps_the_image_near_the_original(make, network, images):
    free = make(perceptual=nn.Identity(), perceptual_scale=0.0).explain(images, network, IDS)
    tied = make(perceptual=nn.Identity(), perceptual_scale=30.0).explain(images, network, IDS)
    distance = [result.difference.pow(2).flatten(1).mean(1) for result in (free, tied)]
    assert (distance[1] < distance[0]).all()


def test_input_of_the_target_class_comes_back_unchanged_and_marked(make, network, images):
    images[2] += 0.9
    result = make().explain(images, network, IDS)
    assert result.unchanged.tolist() == [False, False, True, False]
    assert not result.flipped[2]
    assert torch.equal(result.image[2], images[2])
    assert torch.equal(result.trajectory[2], images[2].expand(3, 1, 8, 8))
    assert result.num_function_evaluations.tolist() == [10, 10, 0, 10]
    assert result.iterations.tolist() == [2, 2, 0, 2]
    assert result.scale[2].isnan()


def test_all_inputs_of_the_target_class_cost_nothing(make, network, images):
    result = make(target=0).explain(images, network)
    assert torch.equal(result.image, images)
    assert result.total_function_evaluations == 0
    assert result.confidences.shape == (4, 3)


def test_images_beyond_the_threshold_leave_the_batch(make, network, images):
    options = {"classifier_scales": (4,), "num_iterations": 4}
    whole = make(**options).explain(images, network, IDS)
    early = make(confidence_threshold=0.8, **options).explain(images, network, IDS)
    assert len(set(early.iterations.tolist())) > 1
    for i in range(4):
        reached = (whole.confidences[i, 1:] >= 0.8).nonzero()[:, 0].tolist()
        passes = reached[0] + 1 if reached else 4
        assert early.iterations[i] == passes
        assert early.num_function_evaluations[i] == 5 * passes
        torch.testing.assert_close(
            early.trajectory[i, : passes + 1], whole.trajectory[i, : passes + 1], rtol=0, atol=1e-5
        )
        for repeated in early.trajectory[i, passes:]:
            assert torch.equal(repeated, early.image[i])
        assert early.scales[i].isnan().tolist() == [False] * passes + [True] * (4 - passes)


def test_result_depends_on_neither_batch_nor_order_nor_process_state(make, tiny_unet, images):
    unet = tiny_unet()
    inferer = make(num_iterations=1)
    together = inferer.explain(images, unet).image
    torch.manual_seed(99)
    assert torch.equal(inferer.explain(images, unet).image, together)
    torch.testing.assert_close(inferer.explain(images.flip(0), unet).image.flip(0), together, rtol=0, atol=1e-4)
    for i in range(4):
        alone = inferer.explain(images[i : i + 1], unet).image
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4)
    other = make(num_iterations=1, seed=1).explain(images, unet).image
    assert (other - together).abs().max() > 0.05


def test_networks_keep_their_mode_and_collect_no_gradients(make, brightness, tiny_unet, images):
    unet, classifier = tiny_unet().train(), brightness().train()
    make(classifier, gradient="xt").explain(images, unet)
    assert unet.training
    assert classifier.training
    parameters = [*unet.parameters(), *classifier.parameters()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)


def test_dropout_is_off_whatever_the_mode(make, brightness, tiny_unet, images):
    unet, classifier = tiny_unet(), nn.Sequential(nn.Dropout(0.5), brightness())
    wanted = make(classifier.eval()).explain(images, unet).image
    torch.testing.assert_close(make(classifier.train()).explain(images, unet).image, wanted, rtol=0, atol=1e-6)


def test_autocast_of_the_caller_changes_little_and_returns_float32(make, tiny_unet, images):
    unet, inferer = tiny_unet(), make(perceptual=PerceptualFeatures(nn.Conv2d(1, 4, 3)), num_iterations=1)
    wanted = inferer(images, unet, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        result = inferer(images, unet, IDS)
    assert result.dtype == torch.float32
    assert 0 < (result - wanted).abs().mean() < 0.02


def test_metadata_of_the_input_is_kept(make, network, images):
    inputs = MetaTensor(
        images, meta={"filename_or_obj": "scan.nii", "affine": torch.diag(torch.tensor([2.0, 3, 1, 1]))}
    )
    result = make()(inputs, network)
    assert isinstance(result, MetaTensor)
    assert result.meta["filename_or_obj"] == "scan.nii"
    torch.testing.assert_close(result.affine, inputs.affine)
    torch.testing.assert_close(result.as_tensor(), make()(images, network))


def test_scheduler_of_the_caller_is_left_alone(make, network, images):
    scheduler = RespacedDDPMScheduler(1000, clip_sample=False)
    before = copy.deepcopy(scheduler.timesteps)
    make(scheduler=scheduler)(images, network)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.clip_sample is False


def test_clipping_is_the_inferers_choice(make, gaussian_network, images):
    network = gaussian_network(0.0, 3.0)
    loose = make(clip_denoised=False, classifier_scales=100)(images, network)
    tight = make(clip_denoised=True, classifier_scales=100)(images, network)
    assert loose.max() > 1.2
    assert tight.abs().max() <= 1


def test_deterministic_solver_repeats_its_start_noise_only(make, network, images):
    result = make(scheduler=RespacedDDIMScheduler(1000), classifier_scales=30).explain(images, network, IDS)
    assert result.flipped.all()


def test_null_class_runs_a_conditional_network_unconditionally(make, tiny_unet, images):
    unet = tiny_unet(num_class_embeds=3)
    null = make(null_class_labels=2)(images, unet, IDS)
    bound = make()(images, lambda x, timesteps: unet(x, timesteps, class_labels=torch.full((len(x),), 2)), IDS)
    torch.testing.assert_close(null, bound, rtol=0, atol=1e-5)
    guided = make(null_class_labels=2, class_labels=1, guidance_scale=3).explain(images, unet, IDS)
    assert (guided.image - null).abs().max() > 1e-3
    assert guided.num_function_evaluations.tolist() == [20] * 4
    with pytest.raises(ValueError, match="null class"):
        make()(images, unet)


def test_target_may_be_given_per_call_and_per_image(make, network, images):
    images[:2] += 0.8  # bright: class 1
    result = make(classifier_scales=30).explain(images, network, IDS, target=[0, 1, 0, 1])
    assert result.target.tolist() == [0, 1, 0, 1]
    assert result.unchanged.tolist() == [False, True, True, False]
    assert result.flipped.tolist() == [True, False, False, True]


def test_volumes_work_as_images_do(make, network):
    volume = torch.rand(2, 1, 4, 4, 4) * 0.4 - 0.6
    result = make(classifier_scales=30).explain(volume, network)
    assert result.trajectory.shape == (2, 3, 1, 4, 4, 4)
    assert result.flipped.all()


def test_bar_counts_the_steps_of_all_passes_and_scales(make, brightness, network, images, bars):
    make(brightness(middle=3.0, slope=1.0), classifier_scales=(0, 10))(images, network)
    assert bars[0].n == 20
    assert bars[0].totals == [10, 15, 20, 20]  # two passes; the second scale of each; what was done


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.rand(1, 1, 8, 8) * 255, r"\[-1, 1\]"),
        (torch.full((1, 1, 8, 8), float("nan")), "NaN"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "floating point"),
        (torch.zeros(1, 8, 8), "batch"),
        (torch.zeros(0, 1, 8, 8), "at least one image"),
        (torch.zeros(1, 3, 8, 8), "in_channels=1"),
        (torch.zeros(1, 1, 7, 8), "divisible by 2"),
        (torch.zeros(1, 1, 8, 8, 8), "spatial dimensions"),
    ],
)
def test_wrong_images_are_refused_with_a_remedy(make, tiny_unet, inputs, message):
    with pytest.raises(ValueError, match=message):
        make()(inputs, tiny_unet())


def test_wrong_targets_ids_and_classifiers_are_refused(make, brightness, network, images):
    with pytest.raises(ValueError, match="target=2 but the classifier has classes 0 to 1"):
        make(target=2)(images, network)
    with pytest.raises(ValueError, match="negative"):
        make(target=-1)(images, network)
    with pytest.raises(ValueError, match="one per image"):
        make(target=[0, 1])(images, network)
    with pytest.raises(ValueError, match="sample_ids holds 1"):
        make()(images, network, ["a"])
    with pytest.raises(ValueError, match="logits"):
        make(nn.Identity())(images, network)
    with pytest.raises(ValueError, match="NaN"):
        make(brightness(middle=float("nan")))(images, network)


def test_towards_its_own_class_an_image_is_run_only_when_asked_and_is_then_no_flip():
    classifier, network, images = _constant_classifier(), _zero_network(), torch.rand(2, 1, 8, 8) - 0.5
    inferer = DiffICEInferer(
        RespacedDDPMScheduler(num_train_timesteps=100), classifier, 1, num_inference_steps=10, progress=False
    )
    left = inferer.explain(images, network)
    assert torch.equal(left.image, images)
    assert left.unchanged.all()
    run = inferer.explain(images, network, run_unchanged=True)
    assert not torch.equal(run.image, images)
    assert not run.unchanged.any()
    assert not run.flipped.any()
    assert (run.num_function_evaluations > 0).all()


def _constant_classifier():
    def classifier(image):
        score = 5 + 0 * image.flatten(1).mean(1)
        return torch.stack([-score, score], dim=1)

    return classifier


def _zero_network():
    return lambda sample, timesteps=None, **conditions: torch.zeros_like(sample)


def test_under_autocast_the_decision_is_still_taken_in_full_precision():
    seen = []

    def classifier(image):
        seen.append((image.dtype, torch.is_autocast_enabled("cpu")))
        return torch.stack([image.flatten(1).sum(1), -image.flatten(1).sum(1)], dim=1)

    inferer = DiffICEInferer(
        RespacedDDPMScheduler(num_train_timesteps=100),
        classifier,
        1,
        num_inference_steps=10,
        strength=0.1,
        num_iterations=1,
        classifier_scales=1,
        progress=False,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inferer.explain(torch.full((1, 1, 8, 8), 0.5), _zero_network())
    assert seen[0] == seen[-1] == (torch.float32, False)
    assert (torch.float32, True) in seen
