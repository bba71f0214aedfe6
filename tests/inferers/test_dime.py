# SPDX-License-Identifier: Apache-2.0
"""DiME: its inner chain in closed form, its cost, and where its paper and its code differ."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.inferers import create_method
from medcf.sampling import make_generators
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

IDS = ["a", "b", "c", "d"]
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()
MEAN, STD, PULL = 0.3, 0.2, 3.0


def test_image_is_guided_by_the_end_of_the_inner_chain(gaussian_network, images):
    """Gaussian data and a deterministic solver: the inner chain is affine, the proximity term makes its end count."""

    def indifferent(image):
        return torch.stack([image.sum(dim=(1, 2, 3)) * 0 + 1, image.sum(dim=(1, 2, 3)) * 0], dim=1)

    method = create_method(
        "dime", scheduler=RespacedDDIMScheduler(1000), classifier=indifferent, target=1, perceptual=nn.Identity(),
        num_inference_steps=12, strength=0.5, classifier_scales=(1,), perceptual_scale=PULL * 64, progress=False,
        clip_denoised=False,
    )  # fmt: skip
    result = method.explain(images, gaussian_network(MEAN, STD), IDS)
    kept = [round(i * 999 / 11) for i in range(12)]

    def coefficients(i):
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        c1 = ((1 - p) / (1 - a)) ** 0.5
        c0 = p**0.5 - c1 * a**0.5
        k = a**0.5 * STD**2 / (a * STD**2 + 1 - a)
        return c0, c1, k, a

    def plain(z, i):
        c0, c1, k, a = coefficients(i)
        return c0 * (MEAN + k * (z - a**0.5 * MEAN)) + c1 * z

    noise = torch.stack([torch.randn(1, 8, 8, generator=g) for g in make_generators(0, IDS, stream=("pass", 0))])
    z = TABLE[kept[5]] ** 0.5 * images.double() + (1 - TABLE[kept[5]]) ** 0.5 * noise
    for i in reversed(range(6)):
        clean = z
        for j in reversed(range(i + 1)):
            clean = plain(clean, j)
        c0, _, _, a = coefficients(i)
        z = plain(z, i) - c0 * (1 - a) / a**0.5 * 2 * PULL * (clean - images) / a**0.5
    torch.testing.assert_close(result.image, z.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [4, 8, 12])
def test_cost_grows_with_the_square_of_the_chain(make_method, network, images, steps):
    options = {"num_inference_steps": 20, "strength": steps / 20}
    paper = make_method("dime", **options).explain(images, network, IDS)
    assert paper.num_function_evaluations.tolist() == [steps * (steps + 1) // 2] * 4
    code = make_method("dime", variant="published_code", **options).explain(
        images, network, IDS
    )  # the first chain is left out
    assert code.num_function_evaluations.tolist() == [steps * (steps + 1) // 2 - (steps - 1)] * 4


def test_same_result_as_the_estimator_of_diffice(make_method, tiny_unet, images):
    unet = tiny_unet()
    ours = make_method("dime").explain(images, unet, IDS)
    theirs = make_method("diffice", gradient="dime").explain(images, unet, IDS)
    assert torch.equal(ours.image, theirs.image)


def test_variant_of_the_code_starts_at_the_input_and_one_step_further(make_method, network, images, brightness):
    class Watching(brightness):
        points: list[torch.Tensor]

        def forward(self, image):
            if image.requires_grad:
                self.points.append(image.detach())
            return super().forward(image)

    points = {}
    for variant in ("paper", "published_code"):
        classifier = Watching()
        classifier.points = points[variant] = []
        method = make_method("dime", variant=variant, classifier=classifier)
        method.explain(images, network, IDS)
    assert torch.equal(points["published_code"][0], images)
    assert (points["paper"][0] - images).abs().max() > 0.05
    kept = RespacedDDPMScheduler(1000)
    kept.set_timesteps(20)
    assert make_method("dime").schedule(0)[1] == kept.kept[4]
    assert make_method("dime", variant="published_code").schedule(0)[1] == kept.kept[5]


def test_variant_chooses_the_class_loss_unless_it_is_given(make_method):
    assert make_method("dime").options.class_loss == "cross_entropy"
    assert make_method("dime", variant="published_code").options.class_loss == "logit"
    assert (
        make_method("dime", variant="published_code", class_loss="cross_entropy").options.class_loss == "cross_entropy"
    )
    with pytest.raises(ValueError, match=r"variant='code' was renamed: use 'published_code'"):
        make_method("dime", variant="code")
    with pytest.raises(ValueError, match="'paper', 'published_code'"):
        make_method("dime", variant="celeba")


def test_l1_term_pulls_the_noisy_image_towards_the_input(make_method, network, images):
    free, tied = (make_method("dime", classifier_scales=0, l1_scale=s).explain(images, network, IDS) for s in (0, 2))
    assert (tied.difference.abs().mean(dim=(1, 2, 3)) < free.difference.abs().mean(dim=(1, 2, 3))).all()


@pytest.mark.parametrize(
    ("name", "options"), [("dime", {}), *((name, {"gradient": "dime"}) for name in ("diffice", "diffice_single"))]
)
@pytest.mark.parametrize("variant", ["exact", "published_code"])
def test_a_start_without_signal_is_refused_before_anything_runs(make_method, name, options, variant):
    scheduler = RespacedDDPMScheduler(1000, rescale_zero_terminal_snr=True, prediction_type="v_prediction")
    options = options | {"scheduler": scheduler, "start_variant": variant}
    for strength in (1.0, (0.5, 1.0)):
        with pytest.raises(ValueError, match=r"0 at timestep 999.*zero terminal SNR.*strength below 1"):
            make_method(name, strength=strength, **options)
    below = make_method(name, strength=0.95, **options)
    with pytest.raises(ValueError, match="timestep 999"):
        below.with_options(strength=1.0)


def test_another_gradient_may_start_without_signal(make_method):
    scheduler = RespacedDDPMScheduler(1000, rescale_zero_terminal_snr=True, prediction_type="v_prediction")
    method = make_method("diffice", scheduler=scheduler, strength=1.0, num_inference_steps=4)
    assert method.scheduler.alpha_bar(method.timesteps[0]) == 0
