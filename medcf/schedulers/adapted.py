# SPDX-License-Identifier: Apache-2.0
"""Schedulers of diffusers, MONAI and MONAI Generative, run by ours: their noise levels, steps and prediction type."""

from __future__ import annotations

import copy
from typing import Any

from medcf.schedulers.base import RespacedScheduler
from medcf.schedulers.selection import create_scheduler

__all__ = ["adapt_scheduler", "check_scheduler"]

#: Name of the class, which MONAI and diffusers share, to the name of our scheduler.
_KINDS = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "UniPCMultistepScheduler": "unipc",
    "DPMSolverMultistepScheduler": "dpmpp",
    "EulerDiscreteScheduler": "euler",
}
_SOLVER_OPTIONS = {
    "unipc": ("solver_order", "solver_type", "lower_order_final", "disable_corrector"),
    "dpmpp": ("solver_order", "solver_type", "lower_order_final", "euler_at_final"),
}
#: Settings of diffusers that change the noise levels or the update, with the values that our schedulers have.
_EXPECTED = {
    "algorithm_type": "dpmsolver++",
    "predict_x0": True,
    "thresholding": False,
    "timestep_type": "discrete",
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False),
    **dict.fromkeys(("use_lu_lambdas", "use_flow_sigmas"), False),
}

#: What methods call on a scheduler; `RespacedScheduler` has all of it.
_CALLED = ("set_timesteps", "timesteps_from", "start_timestep", "alpha_bar", "convert", "posterior", "for_chain")


class _ListOf:
    """The spacing rule of another library's scheduler."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = copy.deepcopy(scheduler)

    def __call__(self, num_inference_steps: int) -> list[int]:
        self.scheduler.set_timesteps(num_inference_steps)
        listed = self.scheduler.timesteps.tolist()
        if any(t != int(t) for t in listed):
            raise ValueError(
                f"{type(self.scheduler).__name__} steps through fractions of timesteps ({listed[1]:g}): set its "
                "timestep_spacing to leading or trailing."
            )
        return sorted({int(t) for t in listed})


def adapt_scheduler(scheduler: Any) -> RespacedScheduler:
    """Return the scheduler of this package that runs another library's chain.

    Noise levels, prediction type, list of timesteps, last noise level and the solver's options are the other
    scheduler's. One of diffusers also counts the steps of a strength like diffusers' pipelines (``strength_rule``), and
    its PNDM is `PLMSScheduler`. One of MONAI or MONAI Generative visits the timesteps it lists, at their own noise
    levels, which MONAI's ``step`` does not always do.

    Args:
        scheduler: a DDPM, DDIM or PNDM scheduler of ``diffusers``, ``monai.networks.schedulers`` or
            ``generative.networks.schedulers``; or UniPC, DPM-Solver++ (multistep) or Euler of ``diffusers``.

    Returns:
        A new scheduler that keeps every timestep.

    Raises:
        ValueError: if there is no counterpart for the class or one of its settings.
    """
    name = type(scheduler).__name__
    if isinstance(scheduler, RespacedScheduler):
        return copy.deepcopy(scheduler)
    if name not in _KINDS:
        raise ValueError(f"{name} has no counterpart in medcf.schedulers: use one of {', '.join(_KINDS)}.")
    config = getattr(scheduler, "config", None)
    settings = vars(scheduler) if config is None else dict(config)
    for setting, expected in _EXPECTED.items():
        if settings.get(setting, expected) not in (expected, None):
            raise ValueError(
                f"{name} with {setting}={settings[setting]!r} has no counterpart in medcf.schedulers: set it to "
                f"{expected!r}."
            )
    kind, options = _KINDS[name], _options(settings)
    if config is not None:
        options["strength_rule"] = "truncated"
    if kind == "pndm" and config is None:  # its list may begin with Runge-Kutta's half steps
        options |= {"spacing": "leading", "steps_offset": settings["steps_offset"]}
    else:
        kind, options["spacing"] = "plms" if kind == "pndm" else kind, _ListOf(scheduler)
    if kind == "ddpm":
        options["variance_type"] = str(settings["variance_type"])
    if kind in _SOLVER_OPTIONS:
        options["solver_options"] = {each: settings[each] for each in _SOLVER_OPTIONS[kind]}
    adapted = create_scheduler(kind, **options)
    levels = scheduler.alphas_cumprod.double().cpu()
    return adapted.set_noise_levels(levels, _final(scheduler, settings, float(levels[0])))


def _options(settings: Any) -> dict[str, Any]:
    """Return the options that all schedulers have."""
    chosen = {"num_train_timesteps": settings["num_train_timesteps"]}
    chosen["prediction_type"] = str(settings["prediction_type"])
    chosen["clip_sample"] = bool(settings.get("clip_sample", False))
    reach = settings.get("clip_sample_range", 1.0)
    low, high = settings.get("clip_sample_values", (-reach, reach))
    return {**chosen, "clip_sample_min": low, "clip_sample_max": high}


def _final(scheduler: Any, settings: Any, first: float) -> float:
    """Return the noise level at which the other scheduler's chain ends."""
    if settings.get("final_sigmas_type") == "sigma_min":
        return first
    return float(getattr(scheduler, "final_alpha_cumprod", 1.0))


def check_scheduler(scheduler: object) -> None:
    """Refuse schedulers of MONAI and diffusers, which ignore their own kept steps, and others that are incomplete.

    Raises:
        ValueError: if the scheduler is not one of ``medcf.schedulers`` and does not work like one; the message names
            the replacement, or what a third party's scheduler lacks.
    """
    missing = [name for name in _CALLED if not callable(getattr(scheduler, name, None))]
    if not missing:
        return
    name = type(scheduler).__name__
    if hasattr(scheduler, "posterior"):
        raise ValueError(
            f"scheduler is a {name}, which lacks {', '.join(missing)}: add it, or derive the class from "
            "medcf.schedulers.RespacedScheduler, which has everything but posterior."
        )
    ours = "RespacedDDPMScheduler" if name == "DDPMScheduler" else "RespacedDDIMScheduler"
    remedy = f"give medcf.schedulers.adapt_scheduler(scheduler), a {ours} with the same schedule"
    if name == "RFlowScheduler":
        remedy = f"train the network with medcf.schedulers.{ours}; one trained with rectified flow cannot be used"
    raise ValueError(f"scheduler is a {name}, which can neither start from a noised image nor be guided: {remedy}.")
