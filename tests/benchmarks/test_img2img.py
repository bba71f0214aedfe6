# SPDX-License-Identifier: Apache-2.0
"""The image-to-image benchmark compares the same work: equal images, from equally many rows through each network."""

from __future__ import annotations

import pytest
import torch

from benchmarks import img2img

pytest.importorskip("diffusers")


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("solver", img2img.SOLVERS)
def test_both_sides_do_the_same_work_and_agree(image, solver: str) -> None:
    given = img2img.parts("tiny", solver)
    rows: dict[str, list[int]] = {"unet": [], "encode": [], "decode": []}

    def counted(part: torch.nn.Module, name: str, key: str) -> None:
        function = getattr(part, name)

        def call(sample: torch.Tensor, *args: object, **kwargs: object) -> object:
            rows[key].append(len(sample))
            return function(sample, *args, **kwargs)

        setattr(part, name, call)

    counted(given[0], "forward", "unet")
    counted(given[1], "encode", "encode")
    counted(given[1], "decode", "decode")
    work, results = {}, {}
    for name, side in img2img.sides(given, image, strength=0.5, steps=10).items():
        for each in rows.values():
            each.clear()
        results[name] = side()
        work[name] = {key: list(each) for key, each in rows.items()}
    assert work["medcf"] == work["diffusers"]
    assert len(work["medcf"]["unet"]) == 5 + (solver == "plms")
    assert torch.allclose(results["medcf"], results["diffusers"], atol=1e-4)


def test_the_command_prints_ratio_and_difference(capsys) -> None:
    img2img.main(["--size", "tiny", "--solvers", "ddim", "--steps", "4", "--repeats", "1", "--device", "cpu"])
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert row[1].strip() == "ddim"
    assert float(row[5]) > 0
    assert float(row[6]) < 1e-4
