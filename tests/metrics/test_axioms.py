# SPDX-License-Identifier: Apache-2.0
"""The axioms of methods whose results are known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medcf.inferers import SDEditInferer
from medcf.metrics.axioms import axioms
from medcf.metrics.exclusions import summarize
from medcf.schedulers import create_scheduler

MEANS = torch.tensor([-0.4, 0.6])
RHO = 0.8


def inputs(shape: tuple[int, ...] = (6, 1, 8, 10)) -> tuple[Tensor, Tensor]:
    own = torch.arange(shape[0]) % 2
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MEANS[own].double().reshape(-1, *[1] * (len(shape) - 1)) + 0.1 * noise, own


def toward_mean(images: Tensor, target: Tensor) -> Tensor:
    """Regression toward the class mean: m + rho (x - m), what a linear Gaussian posterior mean does."""
    mean = MEANS[target].to(images).reshape(-1, *[1] * (images.ndim - 1))
    return mean + RHO * (images - mean)


@pytest.mark.parametrize("shape", [(6, 1, 8, 10), (4, 1, 6, 5, 4)])
def test_a_linear_method_composes_and_returns_as_its_recursion_says(shape) -> None:
    images, own = inputs(shape)
    found = axioms(toward_mean, images, own, 1 - own, repeats=(1, 3), cycles=(1, 3))
    centered = [images - MEANS[each].double().reshape(-1, *[1] * (len(shape) - 1)) for each in (own, 1 - own)]

    def size(values: Tensor) -> Tensor:
        return values.abs().flatten(1).mean(1)

    torch.testing.assert_close(found["composition_1"], (1 - RHO) * size(centered[0]))
    torch.testing.assert_close(found["composition_3"], (1 - RHO**3) * size(centered[0]))
    torch.testing.assert_close(found["minimality"], (1 - RHO) * size(centered[1]))
    torch.testing.assert_close(found["regenerated"], size(centered[0]) / size(centered[1]))
    # Seen from the own class's mean, d goes to gap + rho (d - gap), and then back to rho times that.
    d, gap = centered[0], (MEANS[1 - own] - MEANS[own]).double().reshape(-1, *[1] * (len(shape) - 1))
    back = d
    for number in (1, 2, 3):
        back = RHO * (gap + RHO * (back - gap))
        if number in (1, 3):
            torch.testing.assert_close(found[f"reversibility_{number}"], size(back - d))


def test_doing_nothing_satisfies_every_axiom_and_an_exact_shift_all_but_minimality() -> None:
    images, own = inputs()
    factors = lambda images: images.flatten(2).std(2)  # noqa: E731 - contrast, which a shift keeps
    nothing = axioms(lambda images, target: images, images, own, 1 - own, recover=factors, std=[0.1])
    assert all(float(nothing[name].abs().max()) == 0 for name in nothing if name != "regenerated")
    assert bool(nothing["regenerated"].isnan().all())

    def exact(images: Tensor, target: Tensor) -> Tensor:
        now = (images.flatten(1).mean(1) > 0.1).long()
        return images + (MEANS[target] - MEANS[now]).to(images).reshape(-1, 1, 1, 1)

    found = axioms(exact, images, own, 1 - own, repeats=(1, 4), cycles=(1, 4), recover=factors, std=[0.1])
    for name in ("composition_1", "composition_4", "reversibility_1", "reversibility_4", "other_factors"):
        assert float(found[name].max()) == pytest.approx(0, abs=1e-6), name
    assert found["minimality"].tolist() == pytest.approx([1.0] * 6, abs=1e-6)


def test_a_factor_that_changes_with_the_class_is_found_in_its_own_units() -> None:
    images, own = inputs()

    def stretch(images: Tensor, target: Tensor) -> Tensor:
        return torch.where((target != own).reshape(-1, 1, 1, 1), 1.5 * images, images)

    contrast = images.flatten(1).std(1)
    found = axioms(
        stretch, images, own, 1 - own, repeats=(1,), cycles=(1,), recover=lambda x: x.flatten(2).std(2), std=[0.02]
    )
    torch.testing.assert_close(found["other_factors"], 0.5 * contrast / 0.02)
    assert float(found["other_factors_own"].max()) == 0


def test_the_method_is_asked_for_the_classes_in_turn() -> None:
    images, own = inputs()
    asked: list[list[int]] = []

    def listen(images: Tensor, target: Tensor) -> Tensor:
        asked.append(target.tolist())
        return images

    axioms(listen, images, own, 1 - own, repeats=(2,), cycles=(2,))
    mine, other = own.tolist(), (1 - own).tolist()
    assert asked == [mine] * 2 + [other, mine] * 2


def test_figures_have_intervals_over_subjects() -> None:
    images, own = inputs()
    column = axioms(toward_mean, images, own, 1 - own, repeats=(1,), cycles=(1,))["minimality"]
    found = summarize(column, groups=[0, 0, 1, 1, 2, 2])
    assert found.interval[0] < found.mean < found.interval[1]


def test_an_inferer_of_the_registry_can_be_asked() -> None:
    images, own = inputs()
    images = images.float().clamp(-1, 1)
    scheduler = create_scheduler("ddpm", num_train_timesteps=50)
    inferer = SDEditInferer(
        scheduler,
        lambda images: torch.stack([-images.flatten(1).mean(1), images.flatten(1).mean(1)], 1),
        1,
        num_inference_steps=10,
        strength=0.3,
        null_class_labels=2,
        progress=False,
    )

    class Noise(torch.nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None, **_: Tensor) -> Tensor:
            return x - 0.1 * (class_labels.reshape(-1, 1, 1, 1) == 1)

    def explain(images: Tensor, target: Tensor) -> Tensor:
        return inferer.explain(images, Noise(), list(range(len(images))), target, run_unchanged=True).image

    found = axioms(explain, images, own, 1 - own, repeats=(1,), cycles=(1,))
    assert float(found["composition_1"].min()) > 0  # it regenerates what it should leave alone
    assert float(found["minimality"].min()) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cycles": (0, 1)}, "at least 1"),
        ({"repeats": ()}, "at least 1"),
        ({"recover": lambda images: images.flatten(2).mean(2)}, "needs std"),
        ({"target": torch.zeros(6, dtype=torch.long)}, "must differ"),
        ({"explain": lambda images, target: images[..., :4]}, "returned"),
    ],
)
def test_what_cannot_be_asked_is_refused(change, message) -> None:
    images, own = inputs()
    with pytest.raises(ValueError, match=message):
        axioms(**{"explain": toward_mean, "images": images, "own": own, "target": 1 - own, **change})
