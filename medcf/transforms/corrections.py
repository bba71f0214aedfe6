# SPDX-License-Identifier: Apache-2.0
"""Bias field correction and registration to a template, using SimpleITK."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from numpy.typing import NDArray

from medcf.data import Grid
from medcf.data.image import geometry, meta_of, voxel_sizes
from medcf.data.subject import find_subject, middle_of
from medcf.transforms.images import NUMPY, as_image, tracked

__all__ = ["CorrectBias", "CorrectBiasD", "CorrectBiasDict", "CorrectBiasd", "register"]

logger = logging.getLogger(__name__)

_WORKING_SPACING = 3.0  # mm, for registration: finer than any deviation that matters here
_FIELD_SPACING = 4.0  # mm, for fitting the bias field, which is smooth
_OVERLAP_LOW, _OVERLAP_FAILED = 0.8, 0.5  # Dice coefficients of the masks


class CorrectBias(Transform):
    """Divide by the bias field that N4 finds within the brain (Tustison et al. 2010, 10.1109/TMI.2010.2046908).

    Args:
        subject: how to find the brain if the image has no mask, see `medcf.data.subject.find_subject`.
    """

    backend = NUMPY

    def __init__(self, subject: str = "auto") -> None:
        self.subject = subject

    def __call__(self, image: NdarrayOrTensor) -> torch.Tensor:
        """Correct a non-negative volume (1, X, Y, Z). Its mean within the brain and its mask are kept.

        Raises:
            ValueError: if the brain has negative values, which do not occur in MR magnitude images.
            ImportError: if SimpleITK is missing.
        """
        sitk = _simpleitk("bias_correction")
        image = as_image(image).cpu()
        given = meta_of(image).get("mask")
        mask = find_subject(image, self.subject) if given is None else torch.as_tensor(given)
        values, inside = image.as_subclass(torch.Tensor).float().numpy()[0], mask.numpy()[0] > 0
        if values[inside].min() < 0:
            raise ValueError(
                "bias_correction: the brain has negative values, so this is not an MR magnitude image: switch it off"
            )
        affine = geometry(image)[0]
        floor = max(float(values[inside].mean()) * 1e-3, 1e-6)
        sizes = voxel_sizes(affine)[::-1]  # ITK's first axis is the array's last
        volume = sitk.GetImageFromArray(np.maximum(values, floor))
        brain = sitk.GetImageFromArray(inside.astype(np.uint8))
        for one in (volume, brain):
            one.SetSpacing(sizes)
        shrink = [max(int(_FIELD_SPACING // mm), 1) for mm in sizes]
        correction = sitk.N4BiasFieldCorrectionImageFilter()
        correction.SetMaximumNumberOfIterations([40, 40, 40])
        correction.SetNumberOfThreads(1)  # so that sums, and thus results, do not depend on the machine
        correction.Execute(sitk.Shrink(volume, shrink), sitk.Shrink(brain, shrink))
        field = np.exp(sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(volume)))
        corrected = values / np.maximum(field, 1e-3)
        corrected = (corrected * (values[inside].mean() / corrected[inside].mean())).astype(np.float32)
        return tracked(torch.from_numpy(corrected)[None], image, mask=mask.numpy())


class CorrectBiasd(MapTransform):
    """Dictionary version of `CorrectBias`.

    Args:
        keys: volumes to correct.
        subject: how to find the brain if there is no mask.
        allow_missing_keys: whether keys may be missing.
    """

    backend = CorrectBias.backend

    def __init__(self, keys: KeysCollection, subject: str = "auto", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CorrectBias(subject)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Correct the volumes of one case; other entries are kept."""
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(dict(data))}}


CorrectBiasD = CorrectBiasDict = CorrectBiasd


def register(
    image: torch.Tensor, mask: torch.Tensor | None, template: torch.Tensor, kind: str = "rigid"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Register the brain to a template's brain: moments first, then Mattes' mutual information.

    Args:
        image: (1, X, Y, Z).
        mask: its brain, (1, X, Y, Z); None searches for it.
        template: (1, X, Y, Z), a MetaTensor with an affine; its brain is found with ``"auto"``.
        kind: ``"rigid"`` or ``"affine"``.

    Returns:
        The center of the template's brain (mm), and the matrix (4, 4) from mm in the template to mm in the volume.

    Raises:
        ValueError: if the template has no affine, or the brains do not overlap afterward.
        ImportError: if SimpleITK is missing.
    """
    sitk = _simpleitk("template")
    if not isinstance(template, MetaTensor):
        raise ValueError("template must come from medcf.read, so that its voxels have a position in space")
    inside = find_subject(template)
    fixed = _brain_image(sitk, template, inside)
    moving = _brain_image(sitk, image, find_subject(image) if mask is None else mask)
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
    for axis, unit in enumerate(np.eye(3).tolist()):
        moved[:3, axis] = np.array(transform.TransformPoint(unit)) - moved[:3, 3]
    return middle_of(inside[0].numpy(), geometry(template)[0]), moved


def _brain_image(sitk: Any, volume: torch.Tensor, inside: torch.Tensor) -> Any:
    """Return the brain on a grid along the world's axes, 0 outside; its physical space is RAS+ mm."""
    ends = torch.nonzero(inside[0]).aminmax(dim=0)
    corners = np.array(np.meshgrid(*zip(ends.min.tolist(), ends.max.tolist(), strict=True))).reshape(3, -1)
    world = geometry(volume)[0][:3, :3] @ corners
    size = np.ceil(np.ptp(world, axis=1) / _WORKING_SPACING).astype(int) + 8
    spec = Grid(size.tolist(), _WORKING_SPACING, "RAS", "auto")
    grid = spec.to(volume, spec.fit(volume, inside))
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
        logger.warning("after registration the brain overlaps the template's by only %.2f", overlap)


def _simpleitk(option: str) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise ImportError(f"{option} needs SimpleITK. Run: python -m pip install 'medcf[registration]'") from error
    return SimpleITK
