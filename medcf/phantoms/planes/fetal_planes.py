# SPDX-License-Identifier: Apache-2.0
"""A seeded examination: one fetus, whose planes can be rendered as either site's scanner shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medcf.phantoms.head.echoes import paint_head
from medcf.phantoms.head.poses import HeadPose, Plane, cut
from medcf.phantoms.maternal import MaternalTissue
from medcf.phantoms.planes import limbs, others, trunk
from medcf.phantoms.planes.fetus import Fetus
from medcf.phantoms.planes.scene import Scene
from medcf.phantoms.planes.sites import SITES, Layout, pixel_centers, writing
from medcf.phantoms.planes.states import PlaneState
from medcf.phantoms.shapes import Array
from medcf.phantoms.ultrasound import BeamGrid
from medcf.registry import PHANTOMS

__all__ = ["FetalPlanes", "PlaneSample"]

_BEAMS = (1.6, 0.96)  # samples and beams for each pixel of a side
_COARSEST = 80  # pixels for which beams are computed in a smaller picture
_FINE = 128  # pixels; smaller pictures are averaged from twice their size
_TILT = {"transthalamic": 0.0, "transventricular": 0.0, "transcerebellar": 19.0}
_OFFSET = {"transthalamic": 0.0, "transventricular": 17.0, "transcerebellar": 0.0}


@dataclass(frozen=True)
class PlaneSample:
    """One rendered plane with its complete ground truth.

    Attributes:
        image: (H, W) float32 in [0, 1], multiples of 1/255.
        segmentation: (H, W) uint8: 0 background, then ``STRUCTURES``; nothing outside the sector.
        sector: (H, W) Boolean: where the picture shows echoes.
        label: index in ``PLANE_NAMES``.
        state: the plane that was rendered.
        site: "A" or "B".
        spacing_mm: distances between rows and between columns in mm.
        weeks: gestational age in weeks.
        subject: seed of the subject.
    """

    image: NDArray[np.float32]
    segmentation: NDArray[np.uint8]
    sector: NDArray[np.bool_]
    label: int
    state: PlaneState
    site: str
    spacing_mm: tuple[float, float]
    weeks: float
    subject: int


class FetalPlanes:
    """A fetus with its mother, examined on the scanner of either site: one subject.

    Class labels: 0 abdomen, 1 brain, 2 femur, 3 thorax, 4 maternal cervix, 5 other. The gestational age sets all sizes.

    Args:
        seed: the subject; the same seed gives the same pixels.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xFE7A, self.seed])))
        self.fetus = Fetus.draw(rng)
        drawn = MaternalTissue.draw(rng)
        # More fluid and darker tissue than around a head at term.
        base, swing, phase = drawn.fluid
        self.mother = replace(drawn, scatter=0.75 * drawn.scatter, fluid=(base + 2.5, 1.2 * swing, phase))
        self._cover = float(rng.uniform(7.0, 24.0))
        self._shadow = (float(rng.uniform(-0.7, 0.7)), float(rng.uniform(0.05, 0.12)))

    @property
    def weeks(self) -> float:
        """Gestational age in weeks."""
        return self.fetus.weeks

    def sample_state(self, rng: np.random.Generator, label: int) -> PlaneState:
        """Draw a plane of a class, see `PlaneState.draw`."""
        return PlaneState.draw(rng, label)

    def render(
        self,
        state: PlaneState | None = None,
        *,
        site: str = "A",
        frame: str | None = None,
        seed: int = 0,
        size: tuple[int, int] = (128, 128),
        spacing: float | None = None,
        captions: bool = True,
    ) -> PlaneSample:
        """Image a plane.

        Args:
            state: the plane; None is that of the abdomen.
            site: "A" or "B", whose scanner images it.
            frame: site whose probe, depth and section of the sector are used; None takes the scanner's own. With the
                same frame, pictures of both sites show the same anatomy at the same pixels.
            seed: seed of the speckle only.
            size: rows and columns.
            spacing: pixel spacing in mm; None fits the site's section into the rows.
            captions: whether to burn in the site's text.

        Returns:
            The image and its ground truth.

        Raises:
            ValueError: if the site or the frame does not exist, or the spacing is not positive.
        """
        for name in (site, *([] if frame is None else [frame])):
            if name not in SITES:
                raise ValueError(f"site {name!r} is unknown; choose one of {', '.join(SITES)}")
        state = PlaneState() if state is None else state
        size = (int(size[0]), int(size[1]))
        layout = self.layout(state, site if frame is None else frame)
        step = layout.side / size[0] if spacing is None else float(spacing)
        if not 0 < step < np.inf:
            raise ValueError(f"spacing={spacing}: it must be positive millimeters, or None.")
        machine = SITES[site].machine(self.seed)
        samples, beams = (round(share * max(*size, _COARSEST)) for share in _BEAMS)
        grid = BeamGrid(machine.scanner(layout, beams), layout.apex, (samples, beams))
        plane = self._plane(state)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x5EC8, self.seed, int(seed)])))
        echoes = self._beams(grid, plane, state, rng)
        factor = 2 if max(size) < _FINE else 1
        fine = (size[0] * factor, size[1] * factor)
        gray = grid.scan_convert(echoes, *pixel_centers(layout, step / factor, fine))
        gray = gray.reshape(size[0], factor, size[1], factor).mean(axis=(1, 3))
        row, col = pixel_centers(layout, step, size)
        sector = grid.inside(row, col)
        if captions:
            gray = np.maximum(gray, writing(machine.captions, machine.number, size))
        scene = Scene(self.fetus, plane, row, col)
        self._paint(scene, state)
        return PlaneSample(
            image=(np.rint(np.clip(gray, 0.0, 1.0) * 255.0) / 255.0).astype(np.float32),
            segmentation=np.where(sector, scene.labels, 0).astype(np.uint8),
            sector=sector,
            label=state.label,
            state=state,
            site=site,
            spacing_mm=(step, step),
            weeks=self.weeks,
            subject=self.seed,
        )

    def layout(self, state: PlaneState, site: str) -> Layout:
        """Return what part of a plane a site's picture shows."""
        probe = {"cervix": "endocavity", "vessel": "linear"}.get(state.variant, "curved")
        cover = self._cover if probe == "curved" else 2.0 + 0.15 * self._cover
        return SITES[site].machine(self.seed).layout(self._half(state), cover, probe, state.framing, state.zoom)

    def _half(self, state: PlaneState) -> tuple[float, float]:
        """Return half the height and half the width of the anatomy in mm."""
        sizes, r = self.fetus.sizes, self.fetus.trunk
        half = {
            "femur": (0.26 * sizes["fl"], 0.60 * sizes["fl"]),
            "cervix": (19.0, 24.0),
            "limbs": (0.45 * sizes["fl"], 0.70 * sizes["fl"]),
            "profile": (0.60 * sizes["bpd"], 0.80 * sizes["ofd"]),
            "spine": (0.9 * r, 1.7 * r),
            "placenta": (38.0, 44.0),
            "vessel": (13.0, 19.0),
        }
        if state.name == "brain":
            return _turned((sizes["bpd"] / 2, sizes["ofd"] / 2), state.rotation)
        return _turned(half.get(state.variant, (r, r)), state.rotation)

    def _plane(self, state: PlaneState) -> Plane:
        """Return the cut; planes other than the brain's are drawn in two dimensions."""
        if state.name == "brain":
            tilt, offset = _TILT[state.variant] + state.tilt, _OFFSET[state.variant] + 1.5 * state.offset
            pose = HeadPose(tilt=tilt, offset=offset * self.fetus.head.scale)
            return cut(pose, state.rotation, state.facing, state.shift)
        turn = np.deg2rad(state.rotation)
        cos, sin = float(np.cos(turn)), float(np.sin(turn))
        return Plane((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), 0.0, state.shift, cos, sin, state.facing)

    def _paint(self, scene: Scene, state: PlaneState) -> None:
        if state.name == "brain":
            _brain(scene, self.fetus)
        else:
            _SCENES[state.variant](scene, self.fetus, state)

    def _beams(self, grid: BeamGrid, plane: Plane, state: PlaneState, rng: np.random.Generator) -> Array:
        """Return the gray values on the beams."""
        scanner = grid.scanner
        scene = Scene(self.fetus, plane, grid=grid, mother=self.mother)
        self._paint(scene, state)
        depth = grid.depth[:, None]
        loss = grid.accumulate(scanner.bone * 4.0 * scene.bone_share + scene.loss)
        loss = loss + depth * scanner.tgc + (1.0 - state.penetration) * (3.0 + 0.13 * depth)
        # The acoustic window differs from beam to beam.
        window = self.mother.layers[int(state.framing * len(self.mother.layers)) % len(self.mother.layers)]
        nodes = np.linspace(-1.0, 1.0, len(window))
        loss = loss + 3.0 * np.interp(grid.angle / scanner.half_angle, nodes, np.clip(window, -1.0, 2.0))
        loss = loss + 5.0 * (np.abs(grid.angle) / scanner.half_angle)[None, :] ** 6
        angle, width = self._shadow
        shade = 1.0 - state.shadow * np.exp(-(((grid.angle / scanner.half_angle - angle) / (4 * width)) ** 2))
        loss = loss - 26.0 * np.log10(np.maximum(shade, 0.03))[None, :]
        fade = 10.0 ** (-loss / 20.0)
        # Reverberation in the near field, worse through a poor window, and the receiver's noise.
        haze = scanner.haze * (1.0 + 1.5 * (1.0 - state.penetration)) * np.exp(-depth / 22.0)
        haze = haze * np.exp(0.35 * scene.layers) + 0.08 * scanner.haze
        envelope = grid.envelope(np.sqrt((scene.scatter * fade) ** 2 + haze**2), scene.specular * fade, rng)
        return grid.compress(envelope)


def _brain(scene: Scene, fetus: Fetus) -> None:
    """Paint a plane of the brain: the head phantom's head."""
    head = fetus.head
    if scene.grid is None:
        scene.labels = head.structures(scene.x, scene.y, scene.z).labels()
        return
    outline = head.outline(scene.x, scene.y, scene.z)
    scene.surround(outline[0])
    painted = paint_head(head, scene.plane, scene.grid, outline, scene.layers, scene.scatter, scene.specular)
    scene.scatter, scene.specular, bone = painted
    scene.bone_share = bone / 4.0  # a skull is thinner and lets more sound through than other bones


def _turned(half: tuple[float, float], rotation: float) -> tuple[float, float]:
    """Return half the height and width of an ellipse after a rotation in degrees."""
    cos, sin = abs(float(np.cos(np.deg2rad(rotation)))), abs(float(np.sin(np.deg2rad(rotation))))
    return float(np.hypot(half[0] * cos, half[1] * sin)), float(np.hypot(half[1] * cos, half[0] * sin))


_SCENES: dict[str, Callable[[Scene, Fetus, PlaneState], None]] = {
    "stomach": trunk.abdomen,
    "four_chambers": trunk.thorax,
    "kidneys": trunk.kidneys,
    "femur": limbs.femur,
    "limbs": limbs.limbs,
    "cervix": others.cervix,
    "profile": others.profile,
    "spine": others.spine,
    "placenta": others.placenta,
    "vessel": others.vessel,
}

PHANTOMS.add("fetal_planes", "six classes of fetal ultrasound planes at two sites with different scanners", FetalPlanes)
