# SPDX-License-Identifier: Apache-2.0
"""What the methods make of the demo cases stays what it was, to the fifth decimal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.golden import COUNT, METHODS, SAMPLES, grids, results, sample

# the number of cases keeps the file below a minute; python -m benchmarks.golden --compare takes them all
CHEAP = [("diffice", "attack", 1), ("diffice", "unchanged", COUNT), ("diffice", "sdedit", 1),
         ("controlcg", "unchanged", COUNT), ("controlcg", "controlcg", 1)]  # fmt: skip


@pytest.fixture(scope="module")
def kept():
    with np.load(Path(__file__).parent / "golden" / "results.npz") as stored:
        return dict(stored)


def grids_of(kept, bundle):
    prefix = f"{bundle}/grid/"
    return {name.removeprefix(prefix): image for name, image in kept.items() if name.startswith(prefix)}


def test_the_file_holds_every_method_of_both_bundles(kept):
    expected = {
        f"{bundle}/{method}/{case}/{what}"
        for bundle, methods in METHODS.items()
        for method in methods
        for case in grids_of(kept, bundle)
        for what in ("pixels", "confidences")
    }
    assert {name for name in kept if "/grid/" not in name} == expected
    assert all(len(grids_of(kept, bundle)) == COUNT for bundle in METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", METHODS)
def test_the_demo_cases_come_onto_the_same_grids(kept, bundle, tmp_path):
    made, stored = grids(bundle, tmp_path), grids_of(kept, bundle)
    assert made.keys() == stored.keys()
    for case, image in made.items():
        np.testing.assert_allclose(image, stored[case], rtol=0, atol=1e-6, err_msg=case)


@pytest.mark.slow
@pytest.mark.parametrize(("bundle", "method", "count"), CHEAP)
def test_a_method_finds_the_same(kept, bundle, method, count):
    found = results(bundle, method, dict(list(grids_of(kept, bundle).items())[:count]))
    assert len(found) == 2 * count
    for name, values in found.items():
        np.testing.assert_allclose(values, kept[f"{bundle}/{method}/{name}"], rtol=0, atol=1e-5, err_msg=name)


def test_the_kept_pixels_are_the_same_of_every_image_of_a_shape():
    image = np.arange(10_000, dtype=np.float32).reshape(1, 100, 100)
    assert np.array_equal(sample(image), sample(image + 1) - 1)
    assert len(np.unique(sample(image))) == SAMPLES
