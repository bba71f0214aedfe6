# SPDX-License-Identifier: Apache-2.0
"""What MONAI Deploy, MONAI Label and MONAI FL expect from a bundle.

Deploy and Label take preprocessing, inferer and postprocessing from ``inference.json`` and pass images that they hold
in memory. So loaders and savers are removed, and nothing else may need a file. FL trains with ``train.json`` and
evaluates with ``evaluate.json`` on top of it. A bundle that generates takes no image: Deploy and Label cannot run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, MapTransform
from torch import Tensor

from medcf.runtime.error_report import root_cause
from medcf.runtime.weights import load_weights

__all__ = ["check_consumers", "deploy_transforms", "in_memory", "label_transforms"]

FL_CONFIGS = ("train.json", "evaluate.json")
GENERATORS = ("medcf.synthesis.Generation", "medcf.synthesis.generation.Generation")


def check_consumers(path: Path) -> list[str]:
    """Check one bundle.

    Args:
        path: folder of the bundle.

    Returns:
        The problems, one line each.
    """
    parser = ConfigParser()
    parser.read_config(str(path / "configs" / "inference.json"))
    parser.read_meta(str(path / "configs" / "metadata.json"))
    parser.update({"bundle_root": str(path.resolve())})
    problems = _check_outputs(parser["_meta_::network_data_format"])
    if not _generates(parser):
        problems += _check_images(parser)
    load_weights(parser.get_parsed_content("network_def"), path / "models" / "model.pt")  # both load all parameters
    return problems + _check_federated(path)


def _generates(parser: ConfigParser) -> bool:
    evaluator = parser.get("evaluator")
    return isinstance(evaluator, dict) and evaluator.get("_target_") in GENERATORS


def _check_images(parser: ConfigParser) -> list[str]:
    """Check what Deploy and Label do with an image."""
    composes = {name: parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing")}
    if problems := [
        f"inference.json: {name} is not a Compose of transforms"
        for name, found in composes.items()
        if not isinstance(found, Compose) or not found.transforms
    ]:
        return problems
    return _check_transforms(parser["_meta_::network_data_format"], *composes.values())


def deploy_transforms(transforms: Sequence[Any]) -> list[Any]:
    """List the transforms that MONAI Deploy keeps: it drops those whose class name contains LoadImage or SaveImage.

    Uses Deploy's own code if it is installed.
    """
    try:
        from monai.deploy.operators import monai_bundle_inference_operator as operator

        return list(operator.filter_compose(Compose(list(transforms)), operator.DISALLOW_LOAD_SAVE).transforms)
    except Exception:  # not installed, or its holoscan cannot find the CUDA runtime
        return [t for t in transforms if not any(word in type(t).__name__ for word in ("LoadImage", "SaveImage"))]


def label_transforms(transforms: Sequence[Any]) -> list[Any]:
    """List the transforms that MONAI Label runs on an image in memory: all except `LoadImaged`, which it replaces."""
    return [t for t in transforms if not isinstance(t, LoadImaged)]


def _check_outputs(data_format: dict[str, Any]) -> list[str]:
    problems = []
    for name, output in data_format["outputs"].items():
        if output["type"] == "image":
            problems.append(f"metadata: the output {name} of type 'image' is cast to uint8 by MONAI Deploy: 'series'")
        if not all(key.isdigit() and isinstance(label, str) for key, label in output.get("channel_def", {}).items()):
            problems.append(f"metadata: channel_def of {name} must map digits to words, which MONAI Label reads")
    return problems


def _check_transforms(data_format: dict[str, Any], preprocessing: Compose, postprocessing: Compose) -> list[str]:
    loaders = [type(t).__name__ for t in preprocessing.transforms if isinstance(t, LoadImaged)]
    if not loaders or not isinstance(preprocessing.transforms[0], LoadImaged):
        return ["inference.json: preprocessing must begin with LoadImaged, which MONAI Deploy and MONAI Label remove"]
    kept = deploy_transforms(preprocessing.transforms)
    if len(kept) != len(label_transforms(preprocessing.transforms)):
        return [f"inference.json: MONAI Deploy and MONAI Label drop different parts of the loader {loaders[0]}"]
    after = deploy_transforms(postprocessing.transforms)
    if not isinstance(kept[0], MapTransform) or not isinstance(after[0], MapTransform):
        return ["inference.json: the first transforms after the loader must be MapTransforms, as MONAI Deploy requires"]
    (image, asked), *others = data_format["inputs"].items()
    pred = next(iter(data_format["outputs"]))
    try:
        ready = Compose(kept)({image: in_memory(len(asked["spatial_shape"]))})
    except Exception as error:
        return [f"inference.json: preprocessing fails on an image in memory ({root_cause(error)})"]
    problems = []
    expected = {image, *(name for name, _ in others)}
    if tensors := sorted(str(key) for key, value in ready.items() if isinstance(value, Tensor) and key not in expected):
        shown = ", ".join(tensors)
        problems.append(f"inference.json: preprocessing leaves {shown}, which MONAI Deploy also passes to the inferer")
    if ready[image].shape[0] != asked["num_channels"]:
        problems.append(
            f"inference.json: {image} has {ready[image].shape[0]} channels, metadata {asked['num_channels']}"
        )
    for beside, with_what in ((ready, "with the input"), ({}, "alone")):
        try:
            result = Compose(after)({pred: ready[image] * 0.9, **beside})
            if not bool(torch.isfinite(result[pred]).all()):
                problems.append(f"inference.json: postprocessing {with_what} makes {pred} not finite")
        except Exception as error:
            problems.append(f"inference.json: postprocessing of {pred} {with_what} fails ({root_cause(error)})")
    return problems


def in_memory(axes: int) -> MetaTensor:
    """Return a bright subject on black, laid out as Deploy passes a DICOM series: no channel, 2D as one slice."""
    shape = (96, 80, 72)[:axes]
    distance = sum(((np.arange(n) - n / 2) / n).reshape([-1 if k == axis else 1 for k in range(axes)]) ** 2
                   for axis, n in enumerate(shape))  # fmt: skip
    values = np.where(distance < 0.12, 200 - 400 * distance, 0).astype(np.float32)
    values = values if axes == 3 else values[..., None]
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    meta = {"original_affine": affine, "spatial_shape": np.array(values.shape), "original_channel_dim": "no_channel"}
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine), meta=meta)


def _check_federated(path: Path) -> list[str]:
    """Check for what MONAI FL's ``MonaiAlgo`` uses by default name."""
    files = [path / "configs" / name for name in FL_CONFIGS]
    if missing := [file.name for file in files if not file.is_file()]:
        return [f"configs/{name} is missing, which MONAI FL uses" for name in missing]
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    needed = ("train::trainer", "validate::evaluator")
    problems = [f"{' + '.join(FL_CONFIGS)}: lacks {name}, which MONAI FL uses" for name in needed if name not in parser]
    for number, expression in enumerate(parser.get("initialize", [])):
        if "expect_base" in str(expression):
            try:
                parser.get_parsed_content(f"initialize::{number}")
            except Exception as error:
                problems.append(f"{' + '.join(FL_CONFIGS)}, as MONAI FL merges them: {root_cause(error)}")
    return problems
