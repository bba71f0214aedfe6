# SPDX-License-Identifier: Apache-2.0
"""The floor of a method's differences: the same passes with the same noise, without the wish for another class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medcf.inferers import DiffICEInferer, SDEditInferer, explain_seeds, explain_with_floor
from medcf.schedulers import RespacedDDPMScheduler
from medcf.transforms import DifferenceMap


class Brightness(nn.Module):
    """Class 1 is bright."""

    def forward(self, image: Tensor) -> Tensor:
        logit = 5 * image.flatten(1).mean(1)
        return torch.stack([-logit, logit], dim=1)


def make(**options: Any) -> DiffICEInferer:
    defaults: dict[str, Any] = {"num_inference_steps": 20, "strength": 0.25, "num_iterations": 2, "progress": False}
    defaults |= {"classifier_scales": (6, 12), "confidence_threshold": 0.9, "target": 1}
    scheduler = RespacedDDPMScheduler(1000, variance_type="fixed_large")
    return DiffICEInferer(scheduler, Brightness(), **(defaults | options))


def dark_images() -> Tensor:
    noise = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.4 - 0.2
    return noise + torch.tensor([-0.05, -0.5, 0.4]).reshape(3, 1, 1, 1)


def test_the_unguided_floor_is_the_same_passes_with_the_same_noise(gaussian_network: Any) -> None:
    network, images, inferer = gaussian_network(0.0, 1.0), dark_images(), make()
    found = explain_with_floor(inferer, images, network, ["a", "b", "c"], seeds=(0, 7), floor="unguided")
    assert found.pred.shape == found.reconstruction.shape == (2, 3, 1, 8, 8)
    for number, seed in enumerate((0, 7)):
        result = make(seed=seed).explain(images, network, ["a", "b", "c"])
        assert torch.equal(found.pred[number], result.image)
        plain = make(seed=seed, classifier_scales=0, confidence_threshold=None)
        trajectory = plain.explain(images, network, ["a", "b", "c"]).trajectory
        for case, passes in enumerate(result.iterations.tolist()):
            torch.testing.assert_close(found.reconstruction[number, case], trajectory[case, passes])
    assert inferer.options.seed == 0
    assert inferer.options.classifier_scales == (6, 12)
    assert torch.equal(found.pred[:, 2], found.reconstruction[:, 2])  # bright from the start: nothing ran
    assert not torch.equal(found.pred[0, 0], found.pred[1, 0])


def test_the_class_explains_what_exceeds_the_floor(gaussian_network: Any) -> None:
    images = dark_images()
    found = explain_with_floor(make(), images, gaussian_network(0.0, 1.0), ["a", "b", "c"], floor="unguided")
    plain, honest = (
        [DifferenceMap()(image, found.pred[:, case], floor[:, case]) for case, image in enumerate(images)]
        for floor in (images.expand(3, *images.shape), found.reconstruction)
    )
    for case in (0, 1):  # a uniform gradient brightens all pixels, as far as clipping lets it: the spread is noise
        assert honest[case]["signed"].mean() > 0.02
        assert honest[case]["signed"].std() < 0.25 * plain[case]["signed"].std()
        assert honest[case]["signed_std"].mean() < 0.3 * plain[case]["signed_std"].mean()
    assert honest[2]["absolute"].max() == 0


def test_a_method_without_guidance_needs_the_source_floor_and_seeds_are_needed(gaussian_network: Any) -> None:
    scheduler = RespacedDDPMScheduler(1000)
    inferer = SDEditInferer(scheduler, Brightness(), 1, null_class_labels=2, num_inference_steps=20, progress=False)
    with pytest.raises(ValueError, match="floor='source'"):
        explain_with_floor(inferer, dark_images(), gaussian_network(0.0, 1.0), floor="unguided")
    with pytest.raises(ValueError, match="takes run_unchanged"):
        explain_with_floor(SimpleNamespace(explain=lambda image, network: image), dark_images(), len, floor="source")
    with pytest.raises(ValueError, match="seeds is empty"):
        explain_with_floor(make(), dark_images(), gaussian_network(0.0, 1.0), seeds=())
    with pytest.raises(ValueError, match="floor='none'"):
        explain_with_floor(make(), dark_images(), gaussian_network(0.0, 1.0), floor="none")  # type: ignore[arg-type]


def test_the_source_floor_runs_the_method_towards_the_class_that_the_image_has(gaussian_network: Any) -> None:
    calls = []

    class Runs(DiffICEInferer):
        def explain(self, *args: Any, run_unchanged: bool = False) -> Any:
            calls.append((self.options.seed, self.options.num_iterations, args[3], run_unchanged))
            return super().explain(*args)

    inferer = make()
    inferer.__class__ = Runs
    images = dark_images()
    found = explain_with_floor(inferer, images, gaussian_network(0.0, 1.0), ["a", "b", "c"], seeds=(4,), floor="source")
    (_, _, target, ran), (seed, passes, source, again) = calls
    assert (target, ran, seed, again) == (None, False, 4, True)
    assert source.tolist() == [0, 0, 1]
    assert passes == int(found.results[0].iterations.max())


def test_the_source_floor_runs_as_many_passes_however_sure_the_class_is(gaussian_network: Any) -> None:
    network, images = gaussian_network(-0.5, 0.2), dark_images()[:2]  # all that it knows is dark
    inferer = make(classifier_scales=1, confidence_threshold=0.8)
    found = explain_with_floor(inferer, images, network, ["a", "b"], seeds=(3,), floor="source")
    assert found.results[0].iterations.tolist() == [2, 2]  # too little guidance to reach the target
    free = make(classifier_scales=1, confidence_threshold=None, seed=3)
    wanted = free.explain(images, network, ["a", "b"], 0, run_unchanged=True)
    assert (wanted.confidences[:, 1] > 0.8).all()  # both would leave after a pass
    assert torch.equal(found.reconstruction[0], wanted.image)
    assert inferer.options.confidence_threshold == 0.8


@pytest.mark.parametrize("stacked", [1, 6, 9])
def test_seeds_that_run_together_give_the_samples_of_separate_runs(gaussian_network: Any, stacked: int) -> None:
    network, images, seeds = gaussian_network(0.0, 1.0), dark_images(), (0, 7, 3)
    calls: list[int] = []
    network.register_forward_hook(lambda _module, _inputs, output: calls.append(len(output)))
    found = explain_seeds(make(), images, network, ["a", "b", "c"], seeds=seeds, stacked=stacked)
    assert found.num_function_evaluations.sum() == sum(calls)  # of all seeds
    assert max(calls) == {1: 2, 6: 4, 9: 6}[stacked]  # of three images the last is of the target class already
    singles = [make(seed=seed).explain(images, network, ["a", "b", "c"]) for seed in seeds]
    for number, single in enumerate(singles):
        torch.testing.assert_close(found.samples[number], single.image, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.expected, torch.stack([each.image for each in singles]).mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.spread, torch.stack([each.image for each in singles]).std(0), rtol=0, atol=1e-4)
    assert found.flip_share.tolist() == torch.stack([each.flipped for each in singles]).float().mean(0).tolist()
    assert torch.equal(found.counterfactual.iterations, singles[0].iterations)
    each = torch.stack([single.num_function_evaluations for single in singles])
    assert torch.equal(found.num_function_evaluations, each.sum(0))
    assert not found.spread[2].any()


def test_one_seed_has_no_spread_and_needs_no_second_run(gaussian_network: Any) -> None:
    found = explain_seeds(make(), dark_images(), gaussian_network(0.0, 1.0), ["a", "b", "c"], seeds=(4,))
    assert not found.spread.any()
    assert torch.equal(found.expected, found.counterfactual.image)
    with pytest.raises(ValueError, match="seeds is empty"):
        explain_seeds(make(), dark_images(), gaussian_network(0.0, 1.0), seeds=())


def test_targets_and_regions_of_each_image_stay_with_it(gaussian_network: Any) -> None:
    network, images, region = gaussian_network(0.0, 1.0), dark_images(), torch.zeros(3, 1, 8, 8)
    region[0, ..., :4], region[1, ..., 4:] = 1, 1
    inferer = make(region=region, target=[1, 1, 1])
    found = explain_seeds(inferer, images, network, ["a", "b", "c"], seeds=range(2))
    for seed in range(2):
        single = inferer.with_options(seed=seed).explain(images, network, ["a", "b", "c"]).image
        assert torch.equal(found.samples[seed], single)
    with pytest.raises(ValueError, match="seeds holds 1 for a batch of 3"):
        inferer.explain(images, network, seeds=[1])
