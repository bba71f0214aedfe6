# SPDX-License-Identifier: Apache-2.0
"""Bias field correction and registration to a template, through SimpleITK."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medcf.data.volumes.brain_mask import brain_mask
from medcf.data.volumes.grid import middle_of, to_volume_grid

__all__ = ["correct_bias", "register"]

logger = logging.getLogger(__name__)

_WORKING_SPACING = 3.0  # mm, at which brains are registered: finer than any deviation that matters here
_FIELD_SPACING = 4.0  # mm, at which the bias field is fitted: it is smooth
_OVERLAP_LOW, _OVERLAP_FAILED = 0.8, 0.5  # Dice coefficients of the masks


def correct_bias(
    values: NDArray[np.float32], inside: NDArray[np.bool_], affine: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Divide by the bias field that N4 finds within the brain (Tustison et al. 2010, 10.1109/TMI.2010.2046908).

    Args:
        values: (X, Y, Z), not negative.
        inside: the brain.
        affine: indices to mm.

    Returns:
        (X, Y, Z), of the same mean within the brain.

    Raises:
        ValueError: if the brain has negative values, which no MR magnitude image has.
        ImportError: if SimpleITK is missing.
    """
    sitk = _simpleitk("bias_correction")
    if values[inside].min() < 0:
        raise ValueError("bias_correction: the brain has negative values, so this is no MR magnitude image: switch off")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    floor = max(float(values[inside].mean()) * 1e-3, 1e-6)
    image = sitk.GetImageFromArray(np.maximum(values, floor))
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    for one in (image, mask):
        one.SetSpacing([float(mm) for mm in sizes[::-1]])  # the array's last axis is ITK's first
    shrink = [max(int(_FIELD_SPACING // mm), 1) for mm in sizes[::-1]]
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations([40, 40, 40])
    correction.SetNumberOfThreads(1)  # so that sums, and with them the result, do not depend on the machine
    correction.Execute(sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink))
    field = np.exp(sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image)))
    corrected = values / np.maximum(field, 1e-3)
    return (corrected * (values[inside].mean() / corrected[inside].mean())).astype(np.float32)


def register(
    values: NDArray[np.float32],
    inside: NDArray[np.bool_],
    affine: NDArray[np.float64],
    template: torch.Tensor,
    kind: str = "rigid",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Register the brain to that of a template: moments first, then Mattes' mutual information.

    Args:
        values: (X, Y, Z).
        inside: the brain.
        affine: indices to RAS+ mm.
        template: (1, X, Y, Z), a MetaTensor with an affine; its brain is found by ``"auto"``.
        kind: ``"rigid"`` or ``"affine"``.

    Returns:
        The middle of the template's brain (mm), and the matrix (4, 4) from mm in the template to mm in the volume.

    Raises:
        ValueError: an unknown kind, a template without affine, or brains that do not overlap afterwards.
        ImportError: if SimpleITK is missing.
    """
    sitk = _simpleitk("template")
    if kind not in ("rigid", "affine"):
        raise ValueError(f"registration={kind!r} is neither 'rigid' nor 'affine'.")
    if not isinstance(template, MetaTensor):
        raise ValueError("template must come from read_volume, so that its voxels have a place in space")
    template_inside = brain_mask(template)[0]
    volume = MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine))
    fixed = _brain_image(sitk, template, template_inside)
    moving = _brain_image(sitk, volume, torch.from_numpy(inside[None]))
    transform = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    transform = _optimize(sitk, fixed, moving, transform)
    if kind == "affine":
        start = sitk.AffineTransform(3)
        start.SetMatrix(transform.GetMatrix())
        start.SetTranslation(transform.GetTranslation())
        start.SetCenter(transform.GetCenter())
        transform = _optimize(sitk, fixed, moving, start)
    _check_overlap(sitk, fixed, moving, transform)
    moved = np.eye(4)
    moved[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    for axis in range(3):
        unit = [float(index == axis) for index in range(3)]
        moved[:3, axis] = np.array(transform.TransformPoint(unit)) - moved[:3, 3]
    return middle_of(template_inside[0].numpy(), np.asarray(template.affine, dtype=np.float64)), moved


def _brain_image(sitk: Any, volume: MetaTensor, inside: torch.Tensor) -> Any:
    """The brain on a grid along the world's axes, 0 outside; its physical space is RAS+ mm."""
    ends = torch.nonzero(inside[0]).aminmax(dim=0)
    corners = np.array(np.meshgrid(*zip(ends.min.tolist(), ends.max.tolist(), strict=True))).reshape(3, -1)
    world = np.asarray(volume.affine, dtype=np.float64)[:3, :3] @ corners
    size = np.ceil(np.ptp(world, axis=1) / _WORKING_SPACING).astype(int) + 8
    grid, _ = to_volume_grid(volume, size.tolist(), _WORKING_SPACING, mask=inside)
    image = sitk.GetImageFromArray((grid.as_tensor()[0].numpy().T + 1) / 2)
    image.SetSpacing([_WORKING_SPACING] * 3)
    image.SetOrigin([float(mm) for mm in grid.affine[:3, 3]])
    return image


def _optimize(sitk: Any, fixed: Any, moving: Any, start: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.3, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=150, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([3, 1])
    method.SetSmoothingSigmasPerLevel([6.0, 1.5])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetNumberOfThreads(1)  # so that the result does not depend on the machine
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start


def _check_overlap(sitk: Any, fixed: Any, moving: Any, transform: Any) -> None:
    moved = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0)) > 0.02
    template = sitk.GetArrayFromImage(fixed) > 0.02
    overlap = 2 * float((moved & template).sum()) / max(float(moved.sum() + template.sum()), 1.0)
    if overlap < _OVERLAP_FAILED:
        raise ValueError(f"the volume could not be registered to the template (overlap {overlap:.2f}): check its mask")
    if overlap < _OVERLAP_LOW:
        logger.warning("the brain overlaps with the template's by %.2f only after registration", overlap)


def _simpleitk(option: str) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise ImportError(f"{option} needs SimpleITK. Run: python -m pip install SimpleITK") from error
    return SimpleITK
