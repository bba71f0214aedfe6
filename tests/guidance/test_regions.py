# SPDX-License-Identifier: Apache-2.0
"""Regions in which the image may change: from which step on, where, and what stands outside of them."""

from __future__ import annotations

import pytest
import torch

from medcf.guidance.regions import KnownRegion, SegmentedRegion, SelfMask, background, changed_region, subject_mask
from medcf.sampling import Chain
from medcf.schedulers import RespacedDDPMScheduler
from medcf.schedulers.step import Step

IDS = ["a", "b"]


@pytest.fixture
def chain():
    """Four of ten steps over two pictures."""
    scheduler = RespacedDDPMScheduler(1000)
    scheduler.set_timesteps(10)
    original = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    timesteps = scheduler.timesteps_from(0.4)
    return Chain(original, original, IDS, [0, 0], 0, timesteps, None, None, scheduler)


def make_step(image, t):
    """A step that draws and predicts the same image."""
    return Step(image, 0.0, 0.0, image, image, t)


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_the_mask_begins_with_the_step_of_its_number(chain, start):
    mask = SelfMask(chain, start=start, threshold=0.5, dilation=1)
    prediction = chain.original + 0.1
    prediction[:, :, 2, 3] += 0.9  # the one pixel that may change
    wanted = chain.original.clone()
    wanted[:, :, 2, 3] = prediction[:, :, 2, 3]
    for number, t in enumerate(chain.timesteps):
        step = mask.on_step(make_step(prediction, t))
        torch.testing.assert_close(step.pred_original, prediction if number < start else wanted, rtol=0, atol=0)
        sample = mask.after_step(torch.full_like(prediction, 7.0), step)
        assert int((sample == 7).sum()) == (72 if number < start else 2)


@pytest.mark.parametrize("composite", [True, False])
def test_after_the_last_step_the_input_comes_back_only_where_it_is_asked_for(chain, composite):
    nowhere = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    region = KnownRegion(chain, nowhere, noise="shared", level="published_code", final_composite=composite)
    last = chain.timesteps[-1]
    found = region.after_step(chain.original + 1, make_step(chain.original, last))
    a = chain.scheduler.alpha_bar(last)
    noise = torch.stack([torch.randn(1, 6, 6, generator=generator) for generator in chain.generators("known")])
    wanted = chain.original if composite else a**0.5 * chain.original + (1 - a) ** 0.5 * noise
    torch.testing.assert_close(found, wanted, rtol=0, atol=0 if composite else 1e-6)


@pytest.mark.parametrize("shape", [(5, 7), (5, 6, 7)])
def test_an_image_that_equals_its_original_may_change_nowhere(shape):
    original = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    image = original.clone()
    image[1].view(-1)[17] += 1
    mask = changed_region(image, original, threshold=0.15, dilation=1)
    assert mask.flatten(1).sum(1).tolist() == [0, 1]
    assert not changed_region(original, original, threshold=0.0, dilation=3).any()


def test_a_difference_of_exactly_the_threshold_counts():
    image = torch.tensor([1.0, 0.5, 0.25]).reshape(1, 1, 1, 3)
    mask = changed_region(image, torch.zeros_like(image), threshold=0.5, dilation=1)
    assert mask.flatten().tolist() == [True, True, False]


def picture_of_a_disc():
    """A disc of gray on black, and a segmenter that finds two structures in it."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    radius = ((rows - 20.0) ** 2 + (columns - 20.0) ** 2).sqrt()
    image = torch.where(radius < 16, 0.1, -1.0)[None, None]
    labels = ((radius > 5) & (radius < 8)).long()  # a ring, as a skull is

    def segmenter(pictures):
        return torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1)[None].float().expand(len(pictures), -1, -1, -1)

    return image, radius, segmenter


def test_the_subject_is_what_its_structures_enclose_with_a_soft_border():
    image, radius, segmenter = picture_of_a_disc()
    mask = subject_mask(image, segmenter)
    assert mask.shape == (1, 1, 40, 40)
    assert (mask[0, 0][radius < 6] > 0.99).all()  # the inside of the ring, where there is no structure
    assert (mask[0, 0][radius > 14] == 0).all()
    assert ((mask > 0.1) & (mask < 0.9)).any()
    sharp = subject_mask(image, segmenter, margin=0, softness=0)
    assert set(sharp.unique().tolist()) == {0.0, 1.0}
    assert abs(float(sharp.sum()) - 3.1416 * 8**2) < 20


def test_without_structures_the_subject_is_all_that_is_not_black_outside():
    image, radius, _ = picture_of_a_disc()
    image[0, 0][radius < 3] = -1.0  # black inside belongs to the subject
    mask = subject_mask(image, margin=0, softness=0)
    assert torch.equal(mask[0, 0] == 1, radius < 16)
    nothing = subject_mask(
        image, lambda pictures: torch.eye(3)[0].reshape(1, 3, 1, 1).expand(1, 3, 40, 40), margin=0, softness=0
    )
    assert torch.equal(nothing, mask)


def test_a_soft_mask_mixes_the_sample_with_the_input_at_its_level(chain):
    mask = torch.full((2, 1, 6, 6), 0.25)
    mask[..., :3] = 0.0
    last = chain.timesteps[-1]
    found = KnownRegion(chain, mask).after_step(chain.original + 1, make_step(chain.original, last))
    assert torch.equal(found[..., :3], chain.original[..., :3])
    torch.testing.assert_close(found[..., 3:], chain.original[..., 3:] + 0.25)


def two_lungs(hidden):
    """Two discs, labels 1 and 2, of the right one of which a heart, label 3, hides a part."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(80), indexing="ij")
    labels = torch.zeros(40, 80, dtype=torch.long)
    right = (rows - 20) ** 2 + (columns - 20) ** 2 <= 12**2
    left = (rows - 20) ** 2 + (columns - 60) ** 2 <= 12**2
    labels[right], labels[left] = 1, 2
    heart = (columns >= 40) & (columns < 56) & ((rows - 20).abs() < 3)
    if hidden:
        labels[heart] = 3
    logits = torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1)[None].float()
    return right, left, lambda pictures: logits.expand(len(pictures), -1, -1, -1)


def test_a_region_of_structures_has_each_of_them_and_nothing_between():
    right, left, segmenter = two_lungs(hidden=False)
    image = torch.zeros(2, 1, 40, 80)
    mask = SegmentedRegion(segmenter, [1, 2], hull=True)(image)
    assert mask.shape == (2, 1, 40, 80)
    assert (mask[1, 0][right | left] == 1).all()
    assert not mask[..., 34:46].any()  # but for the pixels that a hull adds along an edge
    assert torch.equal(SegmentedRegion(segmenter, [1])(image)[0, 0] == 1, right)
    assert torch.equal(SegmentedRegion(segmenter)(image)[0, 0] == 1, right | left)


def test_a_hull_includes_what_the_heart_hides_of_a_lung():
    right, left, segmenter = two_lungs(hidden=True)
    image = torch.zeros(1, 1, 40, 80)
    seen = SegmentedRegion(segmenter, [1, 2])(image)[0, 0] == 1
    assert int(((right | left) & ~seen).sum()) > 20
    whole = SegmentedRegion(segmenter, [1, 2], hull=True)(image)[0, 0] == 1
    hidden = (right | left) & ~seen
    assert whole[seen].all()
    assert float(whole[hidden].float().mean()) > 0.7  # all but the tip, which no lung around it shows
    assert not whole[:, 34:46].any()


def test_a_region_grows_by_its_margin_and_fades_out():
    _right, _left, segmenter = two_lungs(hidden=False)
    image = torch.zeros(1, 1, 40, 80)
    grown = SegmentedRegion(segmenter, [1, 2], margin=2)(image)[0, 0]
    assert grown[20, 34] == 1
    assert grown[20, 35] == 0
    soft = SegmentedRegion(segmenter, [1, 2], margin=2, softness=1.0)(image)[0, 0]
    assert 0 < soft[20, 35] < soft[20, 33] <= 1
    with pytest.raises(ValueError, match="margin=-1"):
        SegmentedRegion(segmenter, margin=-1)


def test_of_an_image_without_the_structures_everything_that_is_not_black_is_the_region():
    image, radius, _ = picture_of_a_disc()
    mask = SegmentedRegion(lambda pictures: torch.eye(3)[0].reshape(1, 3, 1, 1).expand(1, 3, 40, 40), [1])(image)
    assert torch.equal(mask[0, 0] == 1, radius < 16)


@pytest.mark.parametrize("value", [-0.95, -1 + 1e-6, -1.001])
def test_background_is_exactly_black(value):
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    image[:, :, 0] = value  # nearly black, and at the border
    assert not background(image).any()
    image[:, :, 0, :3] = -1
    assert background(image).sum() == 2 * 3
