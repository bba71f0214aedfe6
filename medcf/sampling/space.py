# SPDX-License-Identifier: Apache-2.0
"""Where a chain runs: on the pixels, or in the latents of an autoencoder. No method knows which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, adaptive_max_pool3d

from medcf.runtime.choices import check_choice
from medcf.schedulers.step import Step

__all__ = ["LatentSpace", "PixelSpace", "Results", "Space"]

Results = Literal["difference", "decoded"]


class Space(Protocol):
    """What a method needs to know about the space of the diffusion model.

    Attributes:
        range: bounds to which predicted clean samples are clipped; None does not clip them.
        networks: networks that must be in eval mode and without parameter gradients while a method runs.
        limit: name of the floor below which an edit shows nothing; None without floors.
    """

    range: tuple[float, float] | None
    networks: tuple[Any, ...]
    limit: str | None

    def encode(self, image: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return images (B, C, *spatial) in [-1, 1] as samples of the space."""

    def decode(self, sample: Tensor) -> Tensor:
        """Return samples as images (B, C, *spatial); differentiable."""

    def decoder(self, image: Tensor, reference: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function from the samples of a pass to its images; differentiable.

        Args:
            image: the images (B, C, *spatial) from which the pass starts.
            reference: their samples.
        """

    def floors(self, image: Tensor) -> dict[str, Tensor]:
        """Return what the space itself adds to images (B, C, *spatial), by name; nothing in pixels."""

    def mask(self, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Return a mask of the images (B, 1, *spatial), in [0, 1], on the samples' grid ``size``."""


class PixelSpace:
    """The images themselves."""

    networks: tuple[Any, ...] = ()
    limit: str | None = None

    def __init__(self, range: tuple[float, float] | None = (-1.0, 1.0)) -> None:
        self.range = range

    def encode(self, image: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return the images."""
        return image

    def decode(self, sample: Tensor) -> Tensor:
        """Return the samples."""
        return sample

    def decoder(self, image: Tensor, reference: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function that returns samples as they are."""
        return self.decode

    def floors(self, image: Tensor) -> dict[str, Tensor]:
        """Return nothing: a pixel that no step changes is kept."""
        return {}

    def mask(self, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Return the mask."""
        return mask


class LatentSpace:
    """The latents of an autoencoder (Rombach et al. 2022, arXiv 2112.10752): z = (mean - shift) * scale_factor.

    An image that is encoded and decoded loses detail, although nothing was changed. So the result of a pass is its
    image plus the difference of two decoded ones, x + dec(z_result) - dec(enc(x)): what the latents cannot represent
    stays in the image, and a pass that changes nothing returns it exactly.

    Args:
        autoencoder: a network with MONAI's ``encode``, to a mean and a standard deviation (`AutoencoderKL`) or to
            latents alone (`VQVAE`), and ``decode``.
        scale_factor: makes the latents of the training images unit normal; a number or one per channel. None takes the
            autoencoder's ``latent_scale``, 1 if it has none.
        shift: mean of the latents, a number or one per channel; None takes ``latent_shift``, 0 if it has none.
        range: bounds for predicted clean latents; None does not clip them.
        sampled: draw latents from the posterior, with a sample's generator, instead of taking its mean.
        results: "difference", as above, or "decoded", the decoded result alone, as in the published systems.
        measure_floors: have methods report the autoencoder's floors with each result, see `floors`. It takes two more
            encodings and decodings.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        scale_factor: float | Sequence[float] | None = None,
        shift: float | Sequence[float] | None = None,
        range: tuple[float, float] | None = None,
        *,
        sampled: bool = False,
        results: Results = "difference",
        measure_floors: bool = True,
    ) -> None:
        check_choice("results", results, Results)
        self.autoencoder = autoencoder
        self.networks: tuple[Any, ...] = (autoencoder,)
        self.scale_factor = _values(autoencoder, "latent_scale", scale_factor, 1.0)
        self.shift = _values(autoencoder, "latent_shift", shift, 0.0)
        self.range = range
        self.sampled = sampled
        self.results = results
        limit = "difference_floor" if results == "difference" else "floor"
        self.limit: str | None = limit if measure_floors else None
        if not bool((self.scale_factor > 0).all()):
            raise ValueError(f"scale_factor={self.scale_factor.tolist()}: use numbers above 0.")

    def encode(self, image: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return the latents of images (B, C, *spatial) in [-1, 1]."""
        found: Any = self.autoencoder.encode(image)  # type: ignore[operator]
        mean, deviation = map(_full, found) if isinstance(found, tuple) else (_full(found), None)
        if self.sampled and deviation is not None:
            mean = Step(mean, deviation**2, 0.0, mean, mean, 0).draw(generators)
        return (mean - self._channels(self.shift, mean)) * self._channels(self.scale_factor, mean)

    def decode(self, sample: Tensor) -> Tensor:
        """Return the images of latents."""
        latent = sample / self._channels(self.scale_factor, sample) + self._channels(self.shift, sample)
        return _full(self.autoencoder.decode(latent))  # type: ignore[operator]

    def decoder(self, image: Tensor, reference: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function from latents to the images plus the difference of two decoded ones, see the class."""
        if self.results == "decoded":
            return self.decode
        with torch.no_grad():
            base = self.decode(reference)
        return lambda sample: image + (self.decode(sample) - base)

    @torch.no_grad()
    def floors(self, image: Tensor) -> dict[str, Tensor]:
        """Return the errors of the autoencoder (B, C, *spatial), which any result is to be compared with.

        - ``floor``: y - x, y = dec(enc(x)), what it loses of the image: the floor of a decoded result.
        - ``difference_floor``: dec(enc(y)) - y, the difference of two decoded images that are the same to the latents:
          the floor of a difference. 0 for a linear autoencoder whose encoder is its decoder's pseudo-inverse. Not for
          decoded results, which are no differences.
        """
        decoded = self.decode(self.encode(image))
        if self.results == "decoded":
            return {"floor": decoded - image}
        return {"floor": decoded - image, "difference_floor": self.decode(self.encode(decoded)) - decoded}

    def mask(self, mask: Tensor, size: Sequence[int]) -> Tensor:
        """Return the mask on the latents' grid: a latent may change if any of its pixels may."""
        pool = adaptive_max_pool2d if mask.ndim == 4 else adaptive_max_pool3d
        return pool(mask.float(), tuple(size))

    @staticmethod
    def _channels(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device, like.dtype).reshape(1, -1, *[1] * (like.ndim - 2))


def _values(autoencoder: nn.Module, name: str, given: float | Sequence[float] | None, default: float) -> Tensor:
    """Return the given numbers, or those that the autoencoder keeps under a name."""
    return torch.as_tensor(getattr(autoencoder, name, default) if given is None else given).detach().clone()


def _full(tensor: Tensor) -> Tensor:
    """Return a tensor in at least 32 bits, also under autocast: samples and masks are never rounded."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
