# SPDX-License-Identifier: Apache-2.0
"""Published networks whose features sets of images are compared by: Inception-v3, RadImageNet's ResNet-50, SonoNet."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import resnet50
from torch import Tensor, nn
from torch.nn import functional

from medcf.networks.classifier_adapter import ClassifierAdapter, Range
from medcf.networks.inception import InceptionV3
from medcf.networks.published_sononet import PublishedSonoNet
from medcf.runtime.fingerprint import sha256 as file_sha256
from medcf.runtime.weights import load_weights, read_weights

__all__ = ["EXTRACTORS", "MissingWeights", "RadImageNet", "ScriptedFeatures", "feature_extractor", "radimagenet_name"]

#: Classes of TensorFlow's Inception of 2015-12-05; torchvision's, with other weights and pools, has 1000.
_FID_CLASSES = 1008
#: Places of torchvision's layers in the list ``backbone`` of RadImageNet's files.
_RADIMAGENET_PLACES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class RadImageNet(nn.Module):
    """The 2048 pooled features of a ResNet-50 trained on RadImageNet, in MONAI's ``resnet50``.

    Images are resized to 224 x 224 pixels in [-1, 1], as in RadImageNet's training. Source: Mei et al., "RadImageNet:
    an open radiologic deep learning research dataset for effective transfer learning", Radiology: AI 2022.

    Args:
        size: rows and columns that an image is resized to; None leaves it as it is.
    """

    num_features = 2048

    def __init__(self, size: int | None = 224) -> None:
        super().__init__()
        self.size = size
        self.network = resnet50(
            spatial_dims=2, n_input_channels=3, conv1_t_stride=2, bias_downsample=False, feed_forward=False
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 1, H, W) or (B, 3, H, W) in [-1, 1] to features (B, 2048), non-negative."""
        x = image.expand(-1, 3, -1, -1)
        if self.size is not None:
            x = functional.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        features: Tensor = self.network(x)
        return features


class ScriptedFeatures(nn.Module):
    """Features computed by a TorchScript module, whatever range and size it expects.

    Args:
        script: the module; it gets images (B, 3, H, W), a single channel is repeated.
        range: its values for black and white, as in `ClassifierAdapter`. ``(0, 255)`` are floats, not rounded.
        size: rows and columns that an image is stretched to, linearly and without aliasing; None leaves it as it is,
            for a script that resizes.
        arguments: further arguments of the script, by name. None asks for ``return_features=True`` if the script knows
            it, as the one that StyleGAN is evaluated with.
    """

    num_features = 2048

    def __init__(
        self,
        script: torch.jit.ScriptModule,
        range: Range = (-1.0, 1.0),
        size: int | Sequence[int] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.adapter = ClassifierAdapter(script, range, size, channels=3)
        if arguments is None:
            schema: Any = script.forward.schema  # type: ignore[attr-defined]  # torch does not declare it
            known = [argument.name for argument in schema.arguments]
            arguments = {"return_features": True} if "return_features" in known else {}
        self.arguments = dict(arguments)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 1, H, W) or (B, 3, H, W) in [-1, 1] to features (B, 2048).

        Raises:
            ValueError: if the script returns anything else, such as logits of classes.
        """
        features = self.adapter.network(self.adapter.prepare(image), **self.arguments)
        shape = tuple(getattr(features, "shape", ()))
        if shape[:2] != (len(image), self.num_features) or any(side != 1 for side in shape[2:]):
            raise ValueError(
                f"The TorchScript module returned {shape or type(features).__name__} for {len(image)} images, not "
                f"features ({len(image)}, {self.num_features}): give the script that returns the last pool, or the "
                "arguments that make it, such as script={'arguments': {'return_features': True}}."
            )
        return features.flatten(1)


class MissingWeights:
    """Stands for an extractor whose weights were not given, so that a table can say why it has no figure.

    Args:
        reason: a sentence that says what is missing and how to give it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason


def radimagenet_name(name: str) -> str | None:
    """Translate a name in a RadImageNet file into one of torchvision's and MONAI's ResNet-50.

    RadImageNet's own ``ResNet50.pt`` numbers the layers of a list (``backbone.0.weight`` is ``conv1.weight``,
    ``backbone.4.0.bn1.bias`` is ``layer1.0.bn1.bias``); names of a plain ResNet-50 stay. The classification layer is
    left out.
    """
    parts = name.split(".")
    if parts[0] == "fc" or parts[-1] == "num_batches_tracked":
        return None
    if parts[0] == "backbone" and len(parts) > 2:
        return ".".join([_RADIMAGENET_PLACES.get(parts[1], parts[1]), *parts[2:]])
    return name


def _load_radimagenet(path: Path, remedy: str) -> nn.Module:
    extractor = RadImageNet()
    load_weights(extractor.network, path, remedy=remedy, rename=radimagenet_name)
    return extractor


def _inception_name(name: str) -> str | None:
    """Leave out the classifiers, which features do not need."""
    return None if re.match(r"(fc|AuxLogits)\.", name) or name.endswith(".num_batches_tracked") else name


def _load_inception(path: Path, remedy: str) -> nn.Module:
    classes = read_weights(path, remedy=remedy).get("fc.weight")
    if classes is not None and len(classes) != _FID_CLASSES:
        raise ValueError(
            f"{path} holds an Inception-v3 of {len(classes)} classes, such as torchvision's, and FID is defined with "
            f"TensorFlow's of {_FID_CLASSES}. {remedy}"
        )
    return load_weights(InceptionV3(), path, remedy=remedy, rename=_inception_name)


#: How to load each extractor, and where its weights come from.
EXTRACTORS: dict[str, tuple[Callable[[Path, str], nn.Module], str]] = {
    "inception": (
        _load_inception,
        "Give pt_inception-2015-12-05-6726825d.pth from the releases of github.com/mseitzer/pytorch-fid.",
    ),
    "radimagenet": (
        _load_radimagenet,
        "Give ResNet50.pt from the PyTorch weights of github.com/BMEII-AI/RadImageNet.",
    ),
    "sononet": (
        PublishedSonoNet.from_file,
        "Give SonoNet64.pth, or a smaller one, from github.com/rdroste/SonoNet_PyTorch.",
    ),
}
#: What a TorchScript file of each extractor gets by default. StyleGAN's Inception takes gray values of 8 bits and
#: resizes them itself.
_SCRIPTS: dict[str, dict[str, Any]] = {
    "inception": {"range": (0.0, 255.0), "size": None},
    "radimagenet": {"range": (-1.0, 1.0), "size": 224},
}


def feature_extractor(
    name: str,
    weights: str | Path | None = None,
    sha256: str | None = None,
    *,
    script: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> nn.Module | MissingWeights:
    """Load a published feature extractor from a file that the user has; medcf downloads nothing.

    In a config: ``"features": {"inception": {"name": "inception", "weights": FILE, "sha256": DIGITS}}``.

    Args:
        name: "inception" (FID's Inception-v3), "radimagenet" (ResNet-50) or "sononet" (fetal planes).
        weights: state dict, or a TorchScript file; its content decides. None returns a `MissingWeights`, which
            evaluations report in place of a figure.
        sha256: first digits of the file's SHA-256, at least 8, to make sure that figures of two sites compare; None
            accepts any state dict. A TorchScript file is a program, and needs all 64 digits.
        script: for a TorchScript file, the options ``range``, ``size`` and ``arguments`` of `ScriptedFeatures`. By
            default "inception" gets (0, 255) at the image's own size, "radimagenet" (-1, 1) at 224 x 224.
        device: device to move the network to.

    Returns:
        A frozen network in eval mode: images (B, 1, H, W) or (B, 3, H, W) in [-1, 1] to features (B, 2048); of
        SonoNet-64 (B, 256).

    Raises:
        ValueError: if the name is unknown, or the file has another hash or fits another network; or if it is a
            TorchScript file without its hash.
        FileNotFoundError: if there is no such file.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"name={name!r} is unknown: use one of {', '.join(map(repr, EXTRACTORS))}.")
    load, remedy = EXTRACTORS[name]
    if weights is None:
        return MissingWeights(f"not measured: no weights for {name}. {remedy}")
    path = Path(weights)
    network: nn.Module
    if _is_script(path):
        if name not in _SCRIPTS:
            raise ValueError(f"{path} is a TorchScript file; {name} is read from a state dict. {remedy}")
        loaded = _load_script(path, sha256)
        network = ScriptedFeatures(loaded, **_SCRIPTS[name] | dict(script or {}))
    elif script:
        raise ValueError(f"script={dict(script)} is for a TorchScript file, and {path} is none: leave it out.")
    else:
        if sha256 is not None and path.is_file():
            found = file_sha256(path)
            if len(sha256) < 8 or not found.startswith(sha256.lower()):
                raise ValueError(f"{path} has the SHA-256 {found}, not {sha256}: it is another file. {remedy}")
        network = load(path, remedy)
    network.eval().requires_grad_(False)
    return network if device is None else network.to(device)


def _is_script(path: Path) -> bool:
    """Return whether a file is a TorchScript archive: a zip with code beside the tensors, whatever its name."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def _load_script(path: Path, sha256: str | None) -> torch.jit.ScriptModule:
    """Load a TorchScript file whose hash is known; what is hashed is what is loaded."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is None or len(sha256) < 64:
        raise ValueError(
            f"{path} is a TorchScript file, which is a program: it is only run if you give all 64 digits of its "
            "SHA-256 as sha256, from a source that you trust. A state dict holds no code and needs none."
        )
    if found != sha256.lower():
        raise ValueError(f"{path} has the SHA-256 {found}, not {sha256}: it is another file, and was not run.")
    try:
        return torch.jit.load(io.BytesIO(content), map_location="cpu")
    except RuntimeError:  # torch's own text is a C++ stack trace
        raise ValueError(f"{path} is not a readable TorchScript file: it may be truncated, or too new.") from None
