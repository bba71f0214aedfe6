# SPDX-License-Identifier: Apache-2.0
"""Which timesteps are kept, and how a chain finds its way along them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler, RespacedDDPMScheduler, kept_timesteps

ALL = [RespacedDDPMScheduler, RespacedDDIMScheduler, DDIMInverseScheduler]


def space_timesteps(total: int, count: int) -> set[int]:
    """guided-diffusion's rule for a single section, the position accumulated in floating point."""
    stride, position, taken = (total - 1) / (count - 1), 0.0, set()
    for _ in range(count):
        taken.add(round(position))
        position += stride
    return taken


@pytest.mark.parametrize("total", [1000, 100, 4000])
def test_respaced_is_the_rule_of_guided_diffusion_for_every_count(total):
    for count in range(2, total + 1, 1 if total < 4000 else 37):
        assert kept_timesteps(total, count) == sorted(space_timesteps(total, count))


def test_known_lists():
    assert kept_timesteps(1000, 400)[:6] == [0, 3, 5, 8, 10, 13]
    assert kept_timesteps(1000, 400)[-3:] == [994, 996, 999]
    assert kept_timesteps(1000, 10) == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert kept_timesteps(1000, 10, "leading") == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert kept_timesteps(1000, 10, "leading", steps_offset=1) == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    assert kept_timesteps(1000, 10, "trailing") == [99, 199, 299, 399, 499, 599, 699, 799, 899, 999]
    assert kept_timesteps(1000, 3, "linspace") == [0, 500, 999]


@pytest.mark.parametrize("spacing", ["respaced", "leading", "trailing", "linspace"])
def test_every_count_keeps_that_many_distinct_timesteps(spacing):
    for count in range(1, 1001):
        kept = kept_timesteps(1000, count, spacing)
        assert len(kept) == count
        assert kept[0] >= 0
        assert kept[-1] <= 999
        assert all(low < high for low, high in pairwise(kept))


@pytest.mark.parametrize("count", [1, 10, 15, 50, 61, 333, 1000])
@pytest.mark.parametrize("offset", [0, 1])
def test_linspace_keeps_what_monai_announces(count, offset):
    ours = RespacedDDIMScheduler(spacing="linspace", steps_offset=offset)
    theirs = DDIMScheduler(steps_offset=offset)
    ours.set_timesteps(count)
    theirs.set_timesteps(count)
    if count + offset <= 1000:  # with every step kept there is no room for an offset, and MONAI lists one twice
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    else:
        assert ours.timesteps.tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 0), "num_inference_steps"),
        ((1000, 1001), "1000"),
        ((1000, 10, "quadratic"), "respaced, leading, trailing, linspace"),
        ((1000, 999, "leading", 5), "do not fit"),
        ((1000, 999, "respaced", 5), "do not fit"),
        ((1000, 10, "leading", 1000), "steps_offset"),
    ],
)
def test_impossible_lists_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kept_timesteps(*arguments)


@pytest.mark.parametrize("scheduler_type", ALL)
def test_a_new_scheduler_keeps_every_step_and_names_a_wrong_spacing(scheduler_type):
    assert scheduler_type(num_train_timesteps=20).kept == tuple(range(20))
    with pytest.raises(ValueError, match="quadratic"):
        scheduler_type(spacing="quadratic")


@pytest.mark.parametrize("spacing", ["respaced", "leading", "trailing", "linspace"])
def test_previous_walks_the_whole_list_down_to_the_clean_image(spacing):
    scheduler = RespacedDDPMScheduler(spacing=spacing)
    scheduler.set_timesteps(37)
    visited, t = [], int(scheduler.timesteps[0])
    while t >= 0:
        visited.append(t)
        t = scheduler.previous(t)
    assert visited == scheduler.timesteps.tolist()
    assert scheduler.alpha_bar_prev(visited[-1]) == 1.0
    assert scheduler.alpha_bar_prev(visited[0]) == scheduler.alpha_bar(visited[1])


@pytest.mark.parametrize("scheduler_type", ALL)
def test_a_timestep_that_was_not_kept_is_refused(scheduler_type):
    scheduler = scheduler_type()
    scheduler.set_timesteps(400)
    with pytest.raises(ValueError, match="Timestep 1 is not among the 400 kept ones"):
        scheduler.previous(1)
    with pytest.raises(ValueError, match="outside"):
        scheduler.alpha_bar(1000)


def test_the_table_is_the_running_product_of_monais_betas():
    scheduler, theirs = RespacedDDPMScheduler(schedule="cosine"), DDPMScheduler(schedule="cosine")
    product = 1.0
    for t, beta in enumerate(theirs.betas.tolist()):
        product *= 1 - beta
        assert scheduler.alpha_bar(t) == pytest.approx(product, rel=1e-9)
        assert scheduler.alpha_bar(t) == pytest.approx(float(theirs.alphas_cumprod[t]), rel=1e-3, abs=1e-7)


def test_set_alpha_to_one_false_ends_at_the_noise_of_timestep_zero():
    scheduler = RespacedDDIMScheduler(set_alpha_to_one=False, steps_offset=1, spacing="leading")
    scheduler.set_timesteps(50)
    assert scheduler.kept[0] == 1
    assert scheduler.alpha_bar_prev(1) == scheduler.alpha_bar(0) < 1


def test_strength_counts_denoisings():
    scheduler = RespacedDDPMScheduler()
    scheduler.set_timesteps(400)
    chain = scheduler.timesteps_from(0.3)
    assert len(chain) == 120
    assert chain[0] == 298
    assert chain == scheduler.timesteps.tolist()[-120:]
    assert scheduler.start_timestep(0.3) == 298
    assert scheduler.start_timestep(0.3, "published_code") == 300
    assert scheduler.timesteps_from(1.0) == scheduler.timesteps.tolist()
    assert scheduler.start_timestep(1.0, "published_code") == 999
    for strength in (0.0, 0.001, 1.1):
        with pytest.raises(ValueError, match="strength"):
            scheduler.timesteps_from(strength)
    with pytest.raises(ValueError, match="variant"):
        scheduler.start_timestep(0.3, "published")


@pytest.mark.parametrize(
    ("count", "strength", "steps"), [(100, 0.29, 29), (10, 0.24, 2), (10, 0.26, 3), (10, 0.96, 10)]
)
def test_a_strength_stands_for_the_nearest_number_of_steps(count, strength, steps):
    scheduler = RespacedDDPMScheduler()
    scheduler.set_timesteps(count)
    assert len(scheduler.timesteps_from(strength)) == steps  # 0.29 * 100 is 28.999999999999996
    assert scheduler.start_timestep(strength) == scheduler.kept[steps - 1]
