# SPDX-License-Identifier: Apache-2.0
"""MONAI Deploy's own operator runs the bundles' folders, and emits what the explainer returns."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("monai.deploy")

import medcf
from medcf.bundle.consumers import in_memory
from medcf.deploy.sdk import load_sdk

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]


class Port(dict):
    """Both ends of a connection."""

    def receive(self, name: str) -> Any:
        return self[name]

    def emit(self, value: Any, name: str) -> None:
        self[name] = value


@pytest.mark.parametrize("bundle", ["diffice", "controlcg", "valdmd"])
def test_the_bundle_operator_emits_the_explainer_s_counterfactual(bundle: str, monkeypatch) -> None:
    core = load_sdk()
    from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator

    class Empty(core.Application):
        def compose(self) -> None: ...

    monkeypatch.setattr(sys, "path", list(sys.path))  # the operator adds the bundle's folder
    folder = ROOT / "bundles" / bundle
    inputs, outputs = (
        [IOMapping(name, kind, core.IOType.IN_MEMORY)] for name, kind in (("image", core.Image), ("pred", np.ndarray))
    )
    operator = MonaiBundleInferenceOperator(
        Empty([sys.executable, "test"]),
        app_context=core.AppContext({"input": "in", "output": "out", "model": "no such folder"}),
        input_mapping=inputs,
        output_mapping=outputs,
        bundle_path=folder,
    )
    axes = 3 if bundle == "controlcg" else 2
    image = in_memory(axes)
    position = dict.fromkeys(("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing"), 2.0)
    position["nifti_affine_transform"] = image.affine.numpy()
    port = Port(image=core.Image(np.swapaxes(image.numpy(), 0, 2), position))  # slices first, as the SDK has them
    operator.compute(port, port, None)

    # the operator knows no file and no autocast: noise is seeded by the image on the grid, and all is float32
    explain = medcf.load(folder, progress=False, amp=False)
    on_grid = explain.prepare(in_memory(axes))["image"].as_subclass(torch.Tensor)
    image.meta["sha256"] = hashlib.sha256(on_grid.contiguous().numpy().tobytes()).hexdigest()
    found = explain(image)
    assert port["pred"].shape == (1, *found.counterfactual.shape)
    assert np.abs(port["pred"][0] - found.counterfactual).max() <= 1e-4
    assert np.abs(found.difference).max() > 0.05
