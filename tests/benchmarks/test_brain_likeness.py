# SPDX-License-Identifier: Apache-2.0
"""The comparison of phantoms with real volumes measures what it says."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from benchmarks.brain import likeness


def ball(shape: tuple[int, ...], radius: float) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes)) < radius


def test_deep_fluid_is_the_dark_share_of_the_inner_brain():
    mask, ventricle = ball((40, 40, 40), 18), ball((40, 40, 40), 4)
    image = np.where(mask, 0.8, 0.0)
    image[ventricle] = 0.1
    found = likeness.deep_csf_fraction(image, mask, 2.0)
    # eroding by 8 faces-connected steps leaves a body between a ball and an octahedron
    assert 0.02 < found < 0.3
    image[ball((40, 40, 40), 5) & mask] = 0.1
    assert likeness.deep_csf_fraction(image, mask, 2.0) == pytest.approx(found * (5 / 4) ** 3, rel=0.1)
    shallow = np.where(mask & ~ball((40, 40, 40), 16), 0.1, 0.8) * mask
    assert likeness.deep_csf_fraction(shallow, mask, 2.0) == 0  # sulci do not count
    holes = mask & ~ventricle  # masked-out ventricles are filled
    assert likeness.deep_csf_fraction(np.where(holes, 0.8, 0.0), holes, 2.0) == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("slope", [-2.0, -3.5])
def test_the_slope_is_that_of_the_noise(slope):
    shape = (64, 64, 64)
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n, 2.0) for n in shape), indexing="ij")))
    noise = np.fft.fftn(np.random.default_rng(0).standard_normal(shape))
    image = np.fft.ifftn(noise * np.maximum(frequency, 1e-3) ** (slope / 2)).real
    assert likeness.spectral_slope(image, ball(shape, 28), 2.0) == pytest.approx(slope, abs=0.35)


def test_the_command_compares_a_folder_with_phantoms(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (volume,) = likeness.phantoms(1, severity=0.15)
    values = volume.numpy()[0]
    nib.save(
        nib.Nifti1Image(np.round(values * 500).astype(np.int16), volume.affine.numpy()), tmp_path / "images/a.nii.gz"
    )
    page = tmp_path / "page.md"
    page.write_text("<!-- likeness: begin -->\nold\n<!-- likeness: end -->\n")
    likeness.main(["--data", str(tmp_path), "--count", "1", "--page", str(page)])
    assert "old" not in page.read_text()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == len(likeness.PROPERTIES)
    for name, real, healthy, sick in rows:
        means = [float(cell.split("(")[0]) for cell in (real, healthy, sick)]
        assert means[0] == pytest.approx(means[1], rel=0.02, abs=0.005)  # the file IS the healthy phantom
        if "deep fluid" in name:
            assert means[2] > 1.5 * means[1]


def test_an_empty_folder_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        likeness.main(["--data", str(tmp_path)])
    assert "no NIfTI file" in capsys.readouterr().err
