# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE: against the method written out, and what it promises about batches, scales and states."""

from __future__ import annotations

import copy
import itertools
import logging

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medcf.guidance import PerceptualFeatures
from medcf.inferers import DiffICEInferer, create_method, make_generators
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

IDS = ["a", "b", "c", "d"]
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()


class Brightness(nn.Module):
    """Class 1 is bright: logit slope * (mean of the image - middle)."""

    def __init__(self, middle=0.0, slope=5.0, classes=2):
        super().__init__()
        self.middle, self.slope, self.classes = middle, slope, classes
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image):
        logit = self.slope * (self.weight * image.flatten(1).mean(1) - self.middle)
        return torch.stack([-logit, logit, *[logit * 0 - 99] * (self.classes - 2)], dim=1)


@pytest.fixture
def images():
    """Four dark images, from nearly bright to very dark."""
    noise = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.4 - 0.2
    return noise - torch.tensor([0.05, 0.2, 0.4, 0.6]).reshape(4, 1, 1, 1)


@pytest.fixture
def network(gaussian_network):
    """Faithful to any image: the wide prior of a network that denoises little."""
    return gaussian_network(0.0, 1.0)


def make(classifier=None, scheduler=None, **options):
    defaults = {"num_inference_steps": 20, "strength": 0.25, "num_iterations": 2, "classifier_scales": (6,)}
    defaults |= {"perceptual_scale": 3.0, "progress": False, "target": 1}
    classifier = Brightness() if classifier is None else classifier
    scheduler = RespacedDDPMScheduler(1000, variance_type="fixed_large") if scheduler is None else scheduler
    return DiffICEInferer(scheduler, classifier, **(defaults | options))


def written_out(network, classifier, phi, original, start, ids, number, scale, *, gradient="x0", steps=20, count=5):
    """One pass of Diff-ICE: eq. 1 to 3 with the gradient by autograd, ancestral steps with the large variance."""
    kept = [round(i * 999 / (steps - 1)) for i in range(count + 1)]
    generators = make_generators(0, ids, stream=("pass", number))
    inner = make_generators(0, ids, stream=("inner", number))

    def noise(sources):
        return torch.stack([torch.randn(original.shape[1:], generator=generator) for generator in sources])

    def predict(x, i):
        a = TABLE[kept[i]]
        epsilon = network(x, timesteps=torch.full((len(x),), kept[i]))
        return ((x - (1 - a) ** 0.5 * epsilon) / a**0.5).clamp(-1, 1)

    def moments(x, clean, i):
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        beta = 1 - a / p
        mean = p**0.5 * beta / (1 - a) * clean + (a / p) ** 0.5 * (1 - p) / (1 - a) * x
        if i:
            return mean, beta
        return mean, (1 - TABLE[kept[1]] / a) * (1 - a) / (1 - TABLE[kept[1]])

    def loss_gradient(function, point):
        point = point.detach().requires_grad_()
        image = function(point)
        difference = (phi(image) - phi(original)).pow(2).flatten(1).mean(1)
        loss = scale * -classifier(image).log_softmax(1)[:, 1] + 3.0 * difference
        return torch.autograd.grad(loss.sum(), point)[0]

    a = TABLE[kept[count - 1]]
    x = a**0.5 * start + (1 - a) ** 0.5 * noise(generators)
    for i in reversed(range(count)):
        clean = predict(x, i).detach()
        mean, variance = moments(x, clean, i)
        if gradient == "x0":
            g = loss_gradient(lambda point: point, clean)
        elif gradient == "xt":
            g = loss_gradient(lambda point, i=i: predict(point, i), x)
        else:
            y = mean + (variance**0.5 * noise(inner) if i else 0)
            for j in reversed(range(i)):
                m, s = moments(y, predict(y, j), j)
                y = m + (s**0.5 * noise(inner) if j else 0)
            g = loss_gradient(lambda point: point, y) / TABLE[kept[i]] ** 0.5
        x = (mean - variance * g + (variance**0.5 * noise(generators) if i else 0)).detach()
    return x.clamp(-1, 1)


@pytest.mark.parametrize(("gradient", "forwards"), [("x0", 5), ("xt", 5), ("dime", 15)])
def test_two_passes_are_the_method_written_out(tiny_unet, images, gradient, forwards):
    unet, classifier, extractor = tiny_unet(), Brightness(slope=2.0), nn.Conv2d(1, 4, 3)
    inferer = make(classifier, perceptual=PerceptualFeatures(extractor), gradient=gradient, classifier_scales=(40,))
    result = inferer.explain(images, unet, IDS)
    start = images
    for number in range(2):
        start = written_out(unet, classifier, extractor, images, start, IDS, number, 40.0, gradient=gradient)
        torch.testing.assert_close(result.trajectory[:, number + 1], start, rtol=0, atol=2e-4)
    assert result.num_function_evaluations.tolist() == [2 * forwards] * 4
    assert result.total_function_evaluations == 8 * forwards
    torch.testing.assert_close(result.image, result.trajectory[:, -1])
    torch.testing.assert_close(result.trajectory[:, 0], images)
    wanted = torch.stack([classifier(result.trajectory[:, i]).softmax(1)[:, 1] for i in range(3)], dim=1)
    torch.testing.assert_close(result.confidences, wanted.detach())


def test_class_moves_to_the_target_and_more_with_every_scale(network, images):
    changes = []
    for scale in (0, 2, 6, 20):
        result = make(classifier_scales=scale, num_iterations=1).explain(images, network, IDS)
        changes.append(result.confidences[:, 1])
    for weaker, stronger in itertools.pairwise(changes):
        assert (stronger > weaker).all()
    assert changes[0].max() < 0.5 < 0.75 < changes[-1].min()


def test_perceptual_term_keeps_the_image_near_the_original(network, images):
    free = make(perceptual=nn.Identity(), perceptual_scale=0.0).explain(images, network, IDS)
    tied = make(perceptual=nn.Identity(), perceptual_scale=30.0).explain(images, network, IDS)
    distance = [result.difference.pow(2).flatten(1).mean(1) for result in (free, tied)]
    assert (distance[1] < distance[0]).all()


def test_scales_are_tried_smallest_first_and_only_as_far_as_needed(network, images):
    scales = (30, 1, 6)
    result = make(classifier_scales=scales, num_iterations=1).explain(images, network, IDS)
    singles = {s: make(classifier_scales=s, num_iterations=1).explain(images, network, IDS) for s in sorted(scales)}
    assert len(set(result.scale.tolist())) > 1  # images differ in the scale they need
    for i in range(4):
        tried = []
        for scale, single in singles.items():
            tried.append(scale)
            if single.flipped[i]:
                break
        assert result.scale[i] == tried[-1]
        assert result.num_function_evaluations[i] == 5 * len(tried)
        # noise is common to the scales: the search returns what the scale alone does
        torch.testing.assert_close(result.image[i], singles[tried[-1]].image[i], rtol=0, atol=1e-5)


class Narrow(Brightness):
    """Never sure of class 1, and least unsure at one brightness: a scale that overshoots loses confidence."""

    def forward(self, image):
        logit = -1 - 3 * (image.flatten(1).mean(1) - 0.3).pow(2)
        return torch.stack([-logit, logit], dim=1)


def test_most_confident_result_stays_when_no_scale_flips(network, images):
    overshot = make(Narrow(), classifier_scales=(0, 10, 10000), num_iterations=1).explain(images, network, IDS)
    assert overshot.scale.tolist() == [10.0] * 4
    torch.testing.assert_close(overshot.confidences[:, 1], Narrow()(overshot.image).softmax(1)[:, 1])
    result = make(Brightness(middle=3.0, slope=1.0), classifier_scales=(0, 100, 10)).explain(images, network, IDS)
    assert not result.flipped.any()
    assert result.num_function_evaluations.tolist() == [2 * 3 * 5] * 4
    assert result.scale.tolist() == [100.0] * 4
    assert (result.confidences[:, 2] > result.confidences[:, 0]).all()


def test_input_of_the_target_class_comes_back_unchanged_and_marked(network, images, caplog):
    images[2] += 0.9
    with caplog.at_level(logging.INFO, logger="medcf.inferers.diffice"):
        result = make().explain(images, network, IDS)
    assert result.unchanged.tolist() == [False, False, True, False]
    assert not result.flipped[2]
    assert torch.equal(result.image[2], images[2])
    assert torch.equal(result.trajectory[2], images[2].expand(3, 1, 8, 8))
    assert result.num_function_evaluations.tolist() == [10, 10, 0, 10]
    assert result.iterations.tolist() == [2, 2, 0, 2]
    assert result.scale[2].isnan()
    assert "unchanged: c" in caplog.text


def test_all_inputs_of_the_target_class_cost_nothing(network, images):
    result = make(target=0).explain(images, network)
    assert torch.equal(result.image, images)
    assert result.total_function_evaluations == 0
    assert result.confidences.shape == (4, 3)


def test_images_beyond_the_threshold_leave_the_batch(network, images):
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


def test_result_depends_on_neither_batch_nor_order_nor_process_state(tiny_unet, images):
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


def test_every_pass_draws_new_noise(network, images):
    result = make(classifier_scales=0, perceptual_scale=0.0).explain(images, network, IDS)
    first, second = result.trajectory.diff(dim=1).flatten(2).unbind(1)
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1] < 0


def test_networks_keep_their_mode_and_collect_no_gradients(tiny_unet, images):
    unet, classifier = tiny_unet().train(), Brightness().train()
    make(classifier, gradient="xt").explain(images, unet)
    assert unet.training
    assert classifier.training
    parameters = [*unet.parameters(), *classifier.parameters()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)


def test_dropout_is_off_whatever_the_mode(tiny_unet, images):
    unet, classifier = tiny_unet(), nn.Sequential(nn.Dropout(0.5), Brightness())
    wanted = make(classifier.eval()).explain(images, unet).image
    torch.testing.assert_close(make(classifier.train()).explain(images, unet).image, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gradient", ["x0", "xt", "dime"])
def test_gradients_survive_no_grad_but_not_inference_mode(network, images, gradient):
    inferer = make(gradient=gradient)
    wanted = inferer(images, network)
    with torch.no_grad():
        torch.testing.assert_close(inferer(images, network), wanted)
    assert not wanted.requires_grad
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        inferer(images, network)


def test_autocast_of_the_caller_changes_little_and_returns_float32(tiny_unet, images):
    unet, inferer = tiny_unet(), make(perceptual=PerceptualFeatures(nn.Conv2d(1, 4, 3)), num_iterations=1)
    wanted = inferer(images, unet, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        result = inferer(images, unet, IDS)
    assert result.dtype == torch.float32
    assert 0 < (result - wanted).abs().mean() < 0.02


def test_metadata_of_the_input_is_kept(network, images):
    inputs = MetaTensor(
        images, meta={"filename_or_obj": "scan.nii", "affine": torch.diag(torch.tensor([2.0, 3, 1, 1]))}
    )
    result = make()(inputs, network)
    assert isinstance(result, MetaTensor)
    assert result.meta["filename_or_obj"] == "scan.nii"
    torch.testing.assert_close(result.affine, inputs.affine)
    torch.testing.assert_close(result.as_tensor(), make()(images, network))


def test_scheduler_of_the_caller_is_left_alone(network, images):
    scheduler = RespacedDDPMScheduler(1000, clip_sample=False)
    before = copy.deepcopy(scheduler.timesteps)
    make(scheduler=scheduler)(images, network)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.clip_sample is False


def test_clipping_is_the_inferers_choice(gaussian_network, images):
    network = gaussian_network(0.0, 3.0)
    loose = make(clip_denoised=False, classifier_scales=100)(images, network)
    tight = make(clip_denoised=True, classifier_scales=100)(images, network)
    assert loose.max() > 1.2
    assert tight.abs().max() <= 1


def test_starts_of_the_paper_and_of_the_code_differ_by_one_kept_step(network, images):
    paper, code = make(), make(start_variant="code")
    kept = [round(i * 999 / 19) for i in range(20)]
    assert paper.timesteps == code.timesteps == kept[4::-1]
    assert (paper.start_timestep, code.start_timestep) == (kept[4], kept[5])
    scheduler = RespacedDDPMScheduler(1000)
    assert make(scheduler=scheduler, num_inference_steps=400, strength=0.3).start_timestep == 298
    assert len(make(scheduler=scheduler, num_inference_steps=400, strength=0.3).timesteps) == 120


def test_deterministic_solver_repeats_its_start_noise_only(network, images):
    result = make(scheduler=RespacedDDIMScheduler(1000), classifier_scales=30).explain(images, network, IDS)
    assert result.flipped.all()


def test_gradient_of_the_previous_step_is_another_method(network, images):
    current, previous = make()(images, network), make(gradient_step="previous")(images, network)
    assert 1e-3 < (current - previous).abs().max() < 0.5


def test_null_class_runs_a_conditional_network_unconditionally(tiny_unet, images):
    unet = tiny_unet(num_class_embeds=3)
    null = make(null_class_labels=2)(images, unet, IDS)
    bound = make()(images, lambda x, timesteps: unet(x, timesteps, class_labels=torch.full((len(x),), 2)), IDS)
    torch.testing.assert_close(null, bound, rtol=0, atol=1e-5)
    guided = make(null_class_labels=2, class_labels=1, guidance_scale=3).explain(images, unet, IDS)
    assert (guided.image - null).abs().max() > 1e-3
    assert guided.num_function_evaluations.tolist() == [20] * 4
    with pytest.raises(ValueError, match="null class"):
        make()(images, unet)


def test_target_may_be_given_per_call_and_per_image(network, images):
    images[:2] += 0.8  # bright: class 1
    result = make(classifier_scales=30).explain(images, network, IDS, target=[0, 1, 0, 1])
    assert result.target.tolist() == [0, 1, 0, 1]
    assert result.unchanged.tolist() == [False, True, True, False]
    assert result.flipped.tolist() == [True, False, False, True]


def test_volumes_work_as_images_do(network):
    volume = torch.rand(2, 1, 4, 4, 4) * 0.4 - 0.6
    result = make(classifier_scales=30).explain(volume, network)
    assert result.trajectory.shape == (2, 3, 1, 4, 4, 4)
    assert result.flipped.all()


def test_bar_counts_the_steps_of_all_passes_and_scales(network, images, capsys):
    make(Brightness(middle=3.0, slope=1.0), classifier_scales=(0, 10), progress=True)(images, network)
    assert "20/20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength"),
        ({"strength": 1.5}, "strength"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"classifier_scales": ()}, "classifier_scales"),
        ({"classifier_scales": (-1.0,)}, "classifier_scales"),
        ({"confidence_threshold": 1.5}, "confidence_threshold"),
        ({"gradient": "x1"}, "'x0', 'xt', 'dime'"),
        ({"class_loss": "hinge"}, "class_loss"),
        ({"start_variant": "late"}, "'exact', 'code'"),
        ({"gradient": "xt", "gradient_step": "previous"}, "gradient='x0'"),
    ],
)
def test_wrong_options_are_refused_with_their_name(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


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
def test_wrong_images_are_refused_with_a_remedy(tiny_unet, inputs, message):
    with pytest.raises(ValueError, match=message):
        make()(inputs, tiny_unet())


def test_wrong_targets_ids_and_classifiers_are_refused(network, images):
    with pytest.raises(ValueError, match="target=2 but the classifier knows classes 0 to 1"):
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
        make(Brightness(middle=float("nan")))(images, network)


def test_method_is_found_by_name():
    inferer = create_method("diffice", scheduler=RespacedDDPMScheduler(1000), classifier=Brightness(), target=1, seed=3)
    assert isinstance(inferer, DiffICEInferer)
    assert inferer.seed == 3
    with pytest.raises(ValueError, match="diffice"):
        create_method("diffrice")
    with pytest.raises(ValueError, match="typo"):
        create_method("diffice", scheduler=RespacedDDPMScheduler(1000), classifier=Brightness(), target=1, typo=3)
