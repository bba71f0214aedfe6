# SPDX-License-Identifier: Apache-2.0
"""Damaged files through whole runs of the bundles: ``python -m benchmarks.fuzz --count 2000 --seed 0``.

Mutants of DICOM, NIfTI, NRRD, MetaImage and raster files (bytes changed, cut out, repeated or cut off; header fields
above all) go through ``inference.json --method unchanged`` of both bundles. Each run must end with its tables, every
file must be done or named in ``failures.csv``, and no process may abort or take more memory than stated.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file

ROOT = Path(__file__).parents[1]
HEADER = 700  # bytes in which most of the mutations fall
PICTURES = (
    "SC_rgb_rle.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm", "CT_small.dcm", "MR_small_RLE.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "JPEG2000.dcm", "JPEG-lossy.dcm", "examples_palette.dcm", "examples_ybr_color.dcm",
    "image_dfl.dcm", "693_J2KI.dcm", "MR_small_bigendian.dcm", "mlut_18.dcm", "vlut_04.dcm", "OBXXXX1A.dcm",
)  # fmt: skip


def seeds(folder: Path) -> dict[int, list[Path]]:
    """Write or find the files that are mutated; of pictures under 2, of volumes under 3."""
    rng = np.random.default_rng(0)
    plane = rng.integers(0, 256, (60, 80), dtype=np.uint8)
    volume = rng.integers(0, 1000, (20, 22, 18)).astype(np.int16)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp"):
        Image.fromarray(plane).save(folder / name)
    Image.fromarray(plane.astype(np.uint16) * 257).save(folder / "wide.tif")
    nib.save(nib.Nifti1Image(plane.T[:, :, None], np.diag([-1.0, -1.0, 1.0, 1.0])), folder / "p.nii")
    for name in ("v.nii", "v.nii.gz"):
        nib.save(nib.Nifti1Image(volume, affine), folder / name)
    import itk

    for name in ("v.nrrd", "v.mha"):
        itk.imwrite(itk.image_from_array(volume), str(folder / name))
    found = [get_testdata_file(name, download=False) for name in PICTURES]
    flat = [folder / name for name in ("a.png", "a.jpg", "a.tif", "a.bmp", "wide.tif", "p.nii")]
    return {
        2: [Path(str(path)) for path in found if path] + flat,
        3: [folder / name for name in ("v.nii", "v.nii.gz", "v.nrrd", "v.mha")],
    }


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Damage a file as disks, networks and other programs do."""
    raw = bytearray(data)

    def place() -> int:
        return chance.randrange(min(HEADER, len(raw))) if chance.random() < 0.7 else chance.randrange(len(raw))

    def flip() -> None:
        for _ in range(chance.choice((1, 1, 2, 8))):
            raw[place()] = chance.randrange(256)

    def extreme() -> None:
        start = place()
        raw[start : start + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"))

    def cut() -> None:
        start = place()
        del raw[start : start + chance.choice((1, 2, 4, 64))]

    def repeat() -> None:
        start = place()
        raw[start:start] = raw[start : start + chance.choice((1, 2, 4, 64))]

    def end() -> None:
        del raw[chance.randrange(len(raw)) :]

    kinds: list[Callable[[], None]] = [flip, flip, extreme, extreme, cut, repeat, end]
    for _ in range(chance.choice((1, 1, 1, 2))):
        if raw:
            chance.choice(kinds)()
    return bytes(raw)


def run(bundle: str, folder: Path, output: Path) -> tuple[int, str, float]:
    """Run a bundle on a folder; returns its exit status, its last line and the seconds it took."""
    config = ROOT / "bundles" / bundle / "configs" / "inference.json"
    options = {"dataset_dir": folder, "output_dir": output, "method": "unchanged", "progress": False}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config)]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    lines = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, lines[-1][:200] if lines else "", time.monotonic() - began


def listed(table: Path) -> list[str]:
    """Names of the files in a table; empty where there is none."""
    if not table.is_file():
        return []
    with table.open(encoding="utf-8") as stream:
        return [Path(row["file"]).name for row in csv.DictReader(stream)]


def main() -> int:
    """Print what became of the mutants; the exit status is the number of runs and files that fell short."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=250, help="files per run")
    options = parser.parse_args()
    chance, short, total = random.Random(options.seed), 0, Counter[str]()
    with tempfile.TemporaryDirectory() as work:
        originals = Path(work) / "originals"
        originals.mkdir()
        kinds = seeds(originals)
        for start in range(0, options.count, options.most):
            dims = 3 if (start // options.most) % 4 == 3 else 2  # every fourth run is of volumes
            folder, output = Path(work) / f"in{start}", Path(work) / f"out{start}"
            folder.mkdir()
            names = []
            for number in range(start, min(start + options.most, options.count)):
                original = chance.choice(kinds[dims])
                suffix = "".join(original.suffixes)
                (folder / f"m{number:05d}{suffix}").write_bytes(mutate(original.read_bytes(), chance))
                names.append(f"m{number:05d}{suffix}")
            status, last, seconds = run("diffice" if dims == 2 else "controlcg", folder, output)
            done, failed = listed(output / "scores.csv"), listed(output / "failures.csv")
            silent = sorted(set(names) - set(done) - set(failed))
            ended = status in (0, 1) and (output / "summary.json").is_file()
            short += len(silent) + (not ended)
            total += Counter({"done": len(set(done)), "named": len(set(failed) - set(done)), "silent": len(silent)})
            total["aborted"] += not ended
            sys.stdout.write(
                f"{len(names)} mutants, {dims}D: exit {status}, {len(set(done))} done, {len(set(failed))} named, "
                f"{len(silent)} silent {silent[:3]}, {seconds:.0f} s; {last}\n"
            )
            sys.stdout.flush()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    sys.stdout.write(f"{options.count} mutants: {dict(total)}; largest process {peak:.2f} GiB\n")
    return short


if __name__ == "__main__":
    sys.exit(main())
