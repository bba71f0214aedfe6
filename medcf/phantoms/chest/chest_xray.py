# SPDX-License-Identifier: Apache-2.0
"""A seeded chest radiograph that can be rendered healthy and with each of three diseases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medcf.phantoms.chest.anatomy import Array, ChestShape, Lung, project
from medcf.phantoms.chest.devices import Device, device_thickness
from medcf.phantoms.chest.film import BONE, METAL, TISSUE, XrayMachine
from medcf.phantoms.chest.lesions import lesion_thickness
from medcf.phantoms.chest.skeleton import Skeleton
from medcf.phantoms.chest.states import ChestState
from medcf.phantoms.chest.vessels import VesselTree
from medcf.registry import PHANTOMS

__all__ = ["LABELS", "ChestSample", "ChestXray"]

#: Names of the segmentation labels, starting from 1.
LABELS = ("right_lung", "left_lung", "heart", "device")

_AIR = 0.74  # share of a lung that is air
_FIELD = 296.0  # mm, width of the field around a mean adult


@dataclass(frozen=True)
class ChestSample:
    """One rendered radiograph with its complete ground truth; the patient's right is at the image's left.

    Attributes:
        image: (H, W) float32 in [0, 1], multiples of 1/255; bones are bright, lungs dark (MONOCHROME2).
        segmentation: (H, W) uint8: 0 background, 1 right lung, 2 left lung, 3 heart (also where it covers lung),
            4 device.
        lungs: (H, W) uint8: 1 right lung, 2 left lung, also behind the heart or a device; no disease changes them.
        lesion_mm: (H, W) float32, mm of tissue or fluid in place of the lung's air.
        label: index in ``CLASS_NAMES``.
        state: the state that was rendered.
        spacing_mm: distances between rows and between columns in mm.
        age_group: "child" or "adult".
        heart_ratio: largest width of the heart over that of the lungs (cardiothoracic ratio).
        device: "pacemaker", "wires" or None.
        subject: seed of the subject.
    """

    image: NDArray[np.float32]
    segmentation: NDArray[np.uint8]
    lungs: NDArray[np.uint8]
    lesion_mm: NDArray[np.float32]
    label: int
    state: ChestState
    spacing_mm: tuple[float, float]
    age_group: str
    heart_ratio: float
    device: Device | None
    subject: int


class _Healthy(NamedTuple):
    """A subject's projection without disease, on the fine grid (``x``, ``y``, ``lungs``) and on the image's."""

    x: Array
    y: Array
    lungs: tuple[Lung, Lung]
    air: Array  # mm of lung that a lesion can fill, fine grid
    attenuation: Array
    scattered: Array
    background: Array
    open_field: Array
    lung_labels: NDArray[np.uint8]
    segmentation: NDArray[np.uint8]
    heart_ratio: float
    factor: int


class ChestXray:
    """A chest with the machine that images it: one subject.

    Class labels: 0 normal, 1 lung opacity, 2 COVID-19-like, 3 viral-pneumonia-like. The patient's right is at the
    image's left (radiological convention). Disease changes nothing outside the lungs. The heart's size varies among
    subjects and has nothing to do with the class.

    Args:
        seed: the subject; the same seed gives the same pixels. Multiples of four are children.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        self.age_group = "child" if self.seed % 4 == 0 else "adult"
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xC4E5, self.seed])))
        child = self.age_group == "child"
        self.shape = ChestShape.draw(rng, child=child)
        self.skeleton = Skeleton.draw(rng, child=child)
        self.vessels = VesselTree.draw(rng)
        self.machine = XrayMachine.draw(rng)
        self._field = _FIELD * self.shape.scale * float(rng.uniform(0.95, 1.1))
        self._last: tuple[tuple[object, ...], _Healthy] | None = None

    @property
    def field_mm(self) -> float:
        """Height of the exposed field in mm, which is adapted to the patient's size."""
        return self._field

    def sample_state(self, rng: np.random.Generator, label: int) -> ChestState:
        """Draw a state of a class, see `ChestState.draw`."""
        return ChestState.draw(rng, label)

    def render(
        self,
        state: ChestState | None = None,
        *,
        seed: int = 0,
        size: tuple[int, int] = (128, 128),
        spacing: float | None = None,
        device: Device | None = None,
        collimated: bool = True,
    ) -> ChestSample:
        """Image the chest.

        Args:
            state: the disease; None is normal.
            seed: seed of the grain only.
            size: rows and columns.
            spacing: pixel spacing in mm; None fits the subject's field into the rows.
            device: "pacemaker", "wires" or None.
            collimated: whether the collimator's dark borders are in the image; those who explain files crop them.

        Returns:
            The image and its ground truth.
        """
        state = ChestState() if state is None else state
        size = (int(size[0]), int(size[1]))
        step = self._field / size[0] if spacing is None else float(spacing)
        if not 0 < step < np.inf:
            raise ValueError(f"spacing={spacing}: it must be positive millimeters, or None.")
        healthy = self._healthy(size, step, device)
        pixel = step / self.shape.scale  # mm of an adult
        lesion = lesion_thickness(state, healthy.lungs, healthy.x, healthy.y, self.seed)
        lesion = _blocks(np.minimum(lesion * _AIR, healthy.air), healthy.factor) * (healthy.lung_labels > 0)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x6EA1, self.seed, int(seed)])))
        noise = gaussian_filter(rng.standard_normal(size, dtype=np.float32), 0.45) * np.float32(1.7)
        attenuation = healthy.attenuation + TISSUE * lesion
        gray = self.machine.develop(attenuation, healthy.scattered, healthy.background, noise, pixel)
        gray = gray * healthy.open_field if collimated else gray
        return ChestSample(
            image=(np.rint(gray * 255.0) / 255.0).astype(np.float32),
            segmentation=healthy.segmentation.copy(),
            lungs=healthy.lung_labels.copy(),
            lesion_mm=(lesion * self.shape.scale).astype(np.float32),
            label=state.label,
            state=state,
            spacing_mm=(step, step),
            age_group=self.age_group,
            heart_ratio=healthy.heart_ratio,
            device=device,
            subject=self.seed,
        )

    def _healthy(self, size: tuple[int, int], step: float, device: Device | None) -> _Healthy:
        """Project the subject without disease; the last result is kept, so that a pair is projected once."""
        key = (size, step, device)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._project(size, step, device))
        return self._last[1]

    def _project(self, size: tuple[int, int], step: float, device: Device | None) -> _Healthy:
        shape, pixel = self.shape, step / self.shape.scale
        factor = 2 if pixel > 2.0 else 1
        fine = pixel / factor
        rows, cols = size[0] * factor, size[1] * factor
        down = ((np.arange(rows, dtype=np.float32) + 0.5) / rows - 0.5)[:, None]
        right = ((np.arange(cols, dtype=np.float32) + 0.5) / cols - 0.5)[None, :]
        u, v = right * np.float32(cols * fine) - shape.shift[0], down * np.float32(rows * fine) - shape.shift[1]
        cos, sin = np.float32(np.cos(shape.turn)), np.float32(np.sin(shape.turn))
        x, y = u * cos + v * sin, v * cos - u * sin
        soft = project(shape, x, y, fine)
        bone = self.skeleton.project(shape, x, y, fine)
        px, py = self.vessels.points.T * np.array([[shape.width], [shape.height]], np.float32)
        origin = (float(u[0, 0]), float(v[0, 0]))
        vessels = self.vessels.project(px * cos - py * sin, py * cos + px * sin, fine, (rows, cols), origin)
        lung = soft.lungs[0].thickness + soft.lungs[1].thickness
        filled = np.minimum(soft.heart * soft.heart_share + soft.tissue + vessels, 0.9 * lung)
        air = _AIR * (lung - filled)
        attenuation = TISSUE * np.maximum(soft.body - soft.air - air, 0.0) + BONE * bone
        metal = self.machine.marker_thickness(right, down, rows * fine)
        hardware = np.zeros_like(metal) if device is None else device_thickness(device, self.seed, x, y, fine)
        attenuation = _blocks(attenuation + METAL * np.maximum(metal, hardware), factor)
        attenuation = gaussian_filter(attenuation, self.machine.blur / pixel)
        shares = [_blocks(part, factor) for part in (soft.lungs[0].share, soft.lungs[1].share, soft.heart_share)]
        lungs = np.where(shares[0] > 0.5, 1, np.where(shares[1] > 0.5, 2, 0)).astype(np.uint8)
        labels = np.where(shares[2] > 0.5, np.uint8(3), lungs)
        labels[_blocks(hardware, factor) > 0.4] = 4
        return _Healthy(
            x=x,
            y=y,
            lungs=soft.lungs,
            air=air,
            attenuation=attenuation,
            scattered=self.machine.scattered(attenuation, pixel),
            background=self.machine.background(attenuation, pixel),
            open_field=_blocks(self.machine.open_field(right, down, 1.0 / rows), factor),
            lung_labels=lungs,
            segmentation=labels.astype(np.uint8),
            heart_ratio=_width(shares[2] > 0.5) / max(_width(lungs > 0), 1),
            factor=factor,
        )


def _blocks(array: Array, factor: int) -> Array:
    """Average over blocks of ``factor`` pixels per side."""
    if factor == 1:
        return array
    rows, cols = (n // factor for n in array.shape)
    return array.reshape(rows, factor, cols, factor).mean(axis=(1, 3), dtype=np.float32)


def _width(mask: NDArray[np.bool_]) -> int:
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[-1] - columns[0] + 1) if len(columns) else 0


PHANTOMS.add("chest_xray", "chest radiograph: normal, lung opacity, COVID-19, viral pneumonia", ChestXray)
