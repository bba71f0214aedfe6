# SPDX-License-Identifier: Apache-2.0
"""Axioms that a counterfactual method must satisfy, tested without any truth and so on real images as well.

They run the method (Monteiro et al., "Measuring axiomatic soundness of counterfactual image models", ICLR 2023; the
amplification of other factors follows Xia et al., "Mitigating attribute amplification", MICCAI 2024):

- composition: asked for the class that an image has, a method must change nothing, however often it is asked;
- reversibility: toward another class and back must lead to the image again;
- minimality: of two counterfactuals that both arrive, the nearer one is better. Half of what composition costs is no
  change of class, so the distance is also given relative to that of composition;
- other factors: what is no part of the class (size, position, orientation) must not change with it.

A method that does nothing satisfies all of them: read them together with the flips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Explain", "axioms", "mean_absolute_distance"]

#: Images (B, C, *spatial) in [-1, 1] and their target classes (B,) to counterfactuals. Must run images that are in the
#: target class already, as ``inferer.explain(..., run_unchanged=True).image`` does.
Explain = Callable[[Tensor, Tensor], Tensor]


def mean_absolute_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean absolute difference of images (B, C, *spatial), (B,), in units of the images."""
    return (first.double() - second.double()).abs().flatten(1).mean(1)


def axioms(
    explain: Explain,
    images: Tensor,
    own: Tensor,
    target: Tensor,
    *,
    repeats: Sequence[int] = (1, 10),
    cycles: Sequence[int] = (1, 5),
    recover: Callable[[Tensor], Tensor] | None = None,
    std: Sequence[float] | Tensor | None = None,
    distance: Callable[[Tensor, Tensor], Tensor] = mean_absolute_distance,
) -> dict[str, Tensor]:
    """Run a method and measure what it must leave as it is.

    The method runs ``max(repeats)`` times toward the own class, and ``max(cycles)`` times there and back.

    Args:
        explain: the method.
        images: inputs (B, C, *spatial) in [-1, 1].
        own: their classes (B,).
        target: other classes (B,).
        repeats: after how many runs toward the own class composition is measured.
        cycles: after how many times there and back reversibility is measured.
        recover: images to factors (B, P) that are no part of the class, such as
            ``lambda images: identity_network(images)["parameters"]``; None measures none.
        std: standard deviation (P,) of each factor over the population; needed with ``recover``.
        distance: of two batches of images, (B,).

    Returns:
        One column (B,) per figure, for `medcf.metrics.exclusions.summarize` or `medcf.metrics.Mean`:
        ``composition_<n>`` and ``reversibility_<n>`` are distances to the input after n runs or n times there and back;
        ``minimality`` is the distance of the counterfactual; ``regenerated`` is composition's part of it
        (``composition_1`` over ``minimality``; NaN if nothing changed); ``other_factors`` and ``other_factors_own`` are
        mean absolute changes of the factors in units of ``std``, toward the target and toward the own class. Smaller is
        better for all.

    Raises:
        ValueError: if a class is its own target, repeats or cycles are not positive, ``std`` is missing, or the method
            returns images of another shape.

    Example:
        >>> images, own = torch.zeros(2, 1, 8, 8), torch.tensor([0, 0])
        >>> found = axioms(lambda images, target: images + 0.5, images, own, 1 - own, repeats=(1, 3), cycles=(1, 2))
        >>> {name: round(float(values.mean()), 3) for name, values in found.items()}
        {'composition_1': 0.5, 'composition_3': 1.5, 'reversibility_1': 1.0, 'reversibility_2': 2.0, \
'minimality': 0.5, 'regenerated': 1.0}
    """
    if not repeats or not cycles or min(*repeats, *cycles) < 1:
        raise ValueError(f"repeats={tuple(repeats)}, cycles={tuple(cycles)}: give numbers of runs, at least 1.")
    if own.shape != target.shape or bool((own == target).any()):
        raise ValueError("Every target must differ from the image's own class, one of each per image.")
    if recover is not None and std is None:
        raise ValueError("recover needs std, the standard deviation of each factor over the population.")

    def run(images: Tensor, classes: Tensor) -> Tensor:
        made = explain(images, classes)
        if made.shape != images.shape:
            raise ValueError(f"The method returned {tuple(made.shape)} for images of shape {tuple(images.shape)}.")
        return made.as_subclass(Tensor).detach()

    inputs = images.as_subclass(Tensor)
    repeated, returned = [inputs], [inputs]
    there: list[Tensor] = []
    for _ in range(max(repeats)):
        repeated.append(run(repeated[-1], own))
    for _ in range(max(cycles)):
        there.append(run(returned[-1], target))
        returned.append(run(there[-1], own))
    found = {f"composition_{n}": distance(repeated[n], inputs) for n in sorted(set(repeats))}
    found |= {f"reversibility_{n}": distance(returned[n], inputs) for n in sorted(set(cycles))}
    found["minimality"] = distance(there[0], inputs)
    alone = distance(repeated[1], inputs)
    found["regenerated"] = torch.where(found["minimality"] > 0, alone / found["minimality"], torch.nan)
    if recover is not None:
        scale = torch.as_tensor(std, dtype=torch.float64, device=inputs.device)
        before = recover(inputs).double()
        for name, made in (("other_factors", there[0]), ("other_factors_own", repeated[1])):
            found[name] = ((recover(made).double() - before).abs() / scale).mean(1)
    return found
