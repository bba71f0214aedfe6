# SPDX-License-Identifier: Apache-2.0
"""Every bundle of the repository passes the whole bundle check, and runs as MONAI Deploy runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.transforms import Compose
from monai.utils import ensure_tuple

import medcf
from medcf.bundle import verify_bundle
from medcf.bundle.consumers import deploy_transforms, in_memory

BUNDLES = sorted(path for path in (Path(__file__).parents[2] / "bundles").iterdir() if path.is_dir())


@pytest.mark.bundle
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_bundle_is_whole(bundle: Path) -> None:
    assert verify_bundle(bundle) == []


@pytest.mark.bundle
@pytest.mark.parametrize(
    ("bundle", "options"),
    [
        ("diffice", {"inferer#num_inference_steps": 20, "inferer#num_iterations": 1, "inferer#classifier_scales": 60}),
        ("controlcg", {"inferer#num_inference_steps": 4}),
        ("valdmd", {"method": "sdedit", "target": 1, "inferer#num_inference_steps": 6}),
    ],
)
def test_monai_deploy_s_steps_give_a_counterfactual_on_the_image_s_own_matrix(bundle, options) -> None:
    """An image in memory, laid out as its operator hands a DICOM series over, through the parts of the bundle."""
    explain = medcf.load(bundle, progress=False, device="cpu", **options)
    flat = bundle != "controlcg"
    image = in_memory(2 if flat else 3)
    inputs = Compose(deploy_transforms(explain.preprocessing.transforms))({"image": image})
    with torch.no_grad():
        output = ensure_tuple(explain.inferer(inputs=inputs["image"][None], network=explain.network))[0]
    pred = Compose(deploy_transforms(explain.postprocessing.transforms))({"pred": output, **inputs})["pred"]
    spatial = image.shape[:2] if flat else image.shape
    assert pred.shape == (1, *spatial)
    assert pred.affine.equal(image.affine)
    outside = image.as_tensor().reshape(pred.shape) == 0
    white = 255 if flat else 1  # a picture's values are scaled to [0, 1]
    change = (pred.as_tensor() * white - image.as_tensor().reshape(pred.shape)).abs()
    assert float(change.max()) > 5
    assert float(change[outside].mean()) < float(change[~outside].mean())
