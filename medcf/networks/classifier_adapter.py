# SPDX-License-Identifier: Apache-2.0
"""Adapts any classifier to the f of a method, images in [-1, 1] to logits, whatever the network expects and returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from medcf.runtime.frozen import frozen

__all__ = ["ClassifierAdapter", "notice_probabilities", "notice_unit_range"]

Range = str | Sequence[float | Sequence[float]]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # for RGB in [0, 1]
_said: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()  # warnings issued per classifier


class ClassifierAdapter(nn.Module):
    """Convert an image in [-1, 1] to a classifier's input, and its output to logits (B, K).

    Gradients reach the image. During each call the network is in eval mode and its parameters need no gradients;
    afterward its state is restored. So an explanation changes neither its running statistics nor anything else in it.
    Works in 2D and 3D.

    Args:
        network: the classifier.
        range: the network's values for black and for white, each one number or one per channel: ``(0, 1)``,
            ``(0, 255)``. ``"imagenet"`` is RGB in [0, 1], standardized by ImageNet's mean and standard deviation; for
            any other mean m and deviation s, give ``(-m / s, (1 - m) / s)``.
        size: spatial size that the network expects, one number for all axes or one per axis; the image is stretched to
            it linearly, without aliasing. None keeps the image's size.
        channels: channels that the network expects; a single-channel image is repeated. None keeps the image's.
        head: where the logits are. ``"logits"`` takes a tensor as it is, otherwise the entry or attribute of this name,
            as returned by transformers; another name, or an index into a tuple, takes that entry. ``"probabilities"``
            takes the logarithm of a probability tensor. A function is called with the output and returns logits. A
            single logit z, of shape (B,) or (B, 1), becomes the two logits 0 and z, whose softmax is z's sigmoid; a
            single probability is treated likewise.

    Raises:
        ValueError: if an option is invalid.

    Example:
        >>> binary = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
        >>> classifier = ClassifierAdapter(binary, range="imagenet", size=224, channels=3)
        >>> classifier(torch.full((2, 1, 64, 80), -0.5)).shape
        torch.Size([2, 2])
    """

    black: Tensor
    white: Tensor

    def __init__(
        self,
        network: Callable[..., Any],
        range: Range = (-1.0, 1.0),
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        head: str | int | Callable[[Any], Tensor] = "logits",
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size if size is None or isinstance(size, int) else tuple(size)
        self.channels = channels
        self.head = head
        if any(n < 1 for n in ([self.size] if isinstance(self.size, int) else self.size or ())) or channels == 0:
            raise ValueError(f"size={size!r} and channels={channels!r} must be positive.")
        black, white = _black_and_white(range, channels)
        self.register_buffer("black", black, persistent=False)
        self.register_buffer("white", white, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits (B, K) of an image (B, C, *spatial) in [-1, 1].

        Warns once about images that look like [0, 1] and about outputs that look like probabilities.

        Raises:
            ValueError: if an image or an output does not match the options.
        """
        # a guided chain calls this at each step; its images are not inspected, because that would wait for the device
        looks = not (torch.is_grad_enabled() and image.requires_grad)
        if looks:
            notice_unit_range(image, self)
        with frozen(self.network):
            logits = self._logits(self.network(self.prepare(image)), len(image))
        if looks:
            notice_probabilities(logits, self)
        return logits

    def prepare(self, image: Tensor) -> Tensor:
        """Convert an image (B, C, *spatial) in [-1, 1] to the network's range, size and channels."""
        axes = image.ndim - 2
        if self.size is not None:
            size = (self.size,) * axes if isinstance(self.size, int) else self.size
            if len(size) != axes:
                raise ValueError(f"size={size} does not fit an image with {axes} spatial axes: give one per axis.")
            image = _resized(image, size)
        if self.channels is not None and image.shape[1] != self.channels:
            if image.shape[1] != 1:
                raise ValueError(f"channels={self.channels}: {image.shape[1]} channels cannot be repeated, only one.")
            image = image.expand(-1, self.channels, *image.shape[2:])
        black, white = (end.reshape(1, -1, *[1] * axes).to(image) for end in (self.black, self.white))
        return black + (image + 1) / 2 * (white - black)

    def _logits(self, output: Any, count: int) -> Tensor:
        """Find the logits (count, K) in the network's output."""
        found = self.head(output) if callable(self.head) else _entry(output, self.head)
        if found.ndim == 1 and len(found) == count:
            found = found[:, None]
        if found.ndim != 2 or len(found) != count:
            raise ValueError(
                f"head={self.head!r} gives shape {tuple(found.shape)}: logits are (B, K), here ({count}, K)."
            )
        if self.head == "probabilities":
            tiny = torch.finfo(found.dtype).tiny
            found = torch.cat([1 - found, found], dim=1) if found.shape[1] == 1 else found
            return found.clamp(min=tiny).log()
        return torch.cat([torch.zeros_like(found), found], dim=1) if found.shape[1] == 1 else found


def _black_and_white(range: Range, channels: int | None) -> tuple[Tensor, Tensor]:
    """Return the network's black and white values, each (1,) or (channels,)."""
    if isinstance(range, str):
        if range != "imagenet" or channels not in (None, 3):
            raise ValueError(
                f"range={range!r}, channels={channels!r}: the only known name is 'imagenet', with 3 channels."
            )
        mean, std = torch.tensor(_IMAGENET_MEAN), torch.tensor(_IMAGENET_STD)
        return -mean / std, (1 - mean) / std
    ends = [torch.as_tensor(end, dtype=torch.float32).reshape(-1) for end in range]
    fits = len(ends) == 2 and all(len(end) in (1, channels or len(end)) for end in ends)
    if not fits or bool((ends[0] == ends[1]).any()):
        raise ValueError(f"range={range!r} must be two different values, for black and white, or two per channel.")
    return ends[0], ends[1]


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Stretch an image (B, C, *spatial) to a size, linearly; when shrinking, every pixel counts."""
    axes = image.ndim - 2
    if tuple(image.shape[2:]) == tuple(size):
        return image
    if axes == 2:
        return functional.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
    fewer = [min(new, old) for new, old in zip(size, image.shape[2:], strict=True)]
    averaged = functional.interpolate(image, size=fewer, mode="area")  # torch does not antialias volumes
    return functional.interpolate(averaged, size=tuple(size), mode="trilinear", align_corners=False)


def _entry(output: Any, name: str | int) -> Tensor:
    """Return a tensor itself, or the entry or attribute of this name if the output holds several."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and not hasattr(output, str(name)):
        index = name if isinstance(name, int) else 0
        if index < len(output):
            return output[index]
    found = output.get(name) if isinstance(output, Mapping) else getattr(output, str(name), None)
    if not isinstance(found, Tensor):
        names = list(output) if isinstance(output, Mapping) else sorted(getattr(output, "__dict__", {}))
        raise ValueError(
            f"head={name!r}: the network returned {type(output).__name__} with {', '.join(map(str, names))}."
        )
    return found


def notice_unit_range(image: Tensor, classifier: Any) -> None:
    """Warn about images that look like [0, 1] when [-1, 1] is expected.

    Args:
        image: (B, C, *spatial).
        classifier: consumer of the image; it is warned about once.
    """
    low, high = (float(bound) for bound in image.detach().as_subclass(Tensor).aminmax())
    if 0 <= low < high <= 1:
        _warn_once(
            classifier,
            "range",
            f"The images range from {low:.3g} to {high:.3g} and look like [0, 1], where -1 is black: rescale them "
            "by 2 * image - 1, for example with ScaleIntensityRanged(a_min=0, a_max=1, b_min=-1, b_max=1).",
        )


def notice_probabilities(logits: Tensor, classifier: Any) -> None:
    """Warn about class scores that look like probabilities: rows without negative values that sum to 1.

    Args:
        logits: (B, K).
        classifier: source of the logits; it is warned about once.
    """
    values = logits.detach().float()
    if (
        values.ndim == 2
        and values.shape[1] > 1
        and bool(((values.sum(1) - 1).abs() < 1e-3).all() & (values >= 0).all())
    ):
        _warn_once(
            classifier,
            "probabilities",
            f"{type(classifier).__name__} seems to return probabilities, but logits are expected: "
            "remove its softmax, or wrap it in medcf.networks.ClassifierAdapter(..., head='probabilities').",
        )


def _warn_once(owner: Any, kind: str, text: str) -> None:
    """Warn, unless the owner was already warned about this kind of problem."""
    try:
        said = _said.setdefault(owner, set())
    except TypeError:  # not hashable or not weakly referenceable: leave it to the warning filter
        said = set()
    if kind not in said:
        said.add(kind)
        warnings.warn(text, UserWarning, stacklevel=4)
