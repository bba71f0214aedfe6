# SPDX-License-Identifier: Apache-2.0
"""A common interface to networks that predict the noise, the clean image or the velocity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["Prediction", "working_dtype"]


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype a scheduler computes in: float64 for float64 input, otherwise float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network's prediction for a noisy image, in all three parameterizations.

    They are related by x_t = √A x0 + √(1 - A) ε and v = √A ε - √(1 - A) x0 (Salimans & Ho 2022, arXiv 2202.00512, app.
    D), where A is the cumulative alpha of the timestep. All tensors are (B, C, *spatial), float32 or wider.

    Args:
        noise: ε, the predicted noise.
        original: the predicted clean image, NOT clipped.
        velocity: v.
        variance: the raw variance channels of a network with 2C outputs, otherwise None.
    """

    noise: torch.Tensor
    original: torch.Tensor
    velocity: torch.Tensor
    variance: torch.Tensor | None = None

    @classmethod
    def from_output(
        cls, model_output: torch.Tensor, sample: torch.Tensor, alpha_bar: float, prediction_type: str
    ) -> Prediction:
        """Interpret a network's output.

        Differentiable with respect to both tensors.

        Args:
            model_output: (B, C, *spatial), or (B, 2C, *spatial) whose second half is the learned variance.
            sample: the noisy image given to the network, (B, C, *spatial).
            alpha_bar: A of the timestep given to the network.
            prediction_type: ``"epsilon"``, ``"sample"`` or ``"v_prediction"``.

        Returns:
            The prediction, in float32 or wider.

        Raises:
            ValueError: if the number of channels is neither C nor 2C, the prediction type is unknown, or it is
                "epsilon" where A is 0.
        """
        channels, variance = sample.shape[1], None
        if model_output.shape[1] == 2 * channels:
            model_output, variance = torch.split(model_output, channels, dim=1)
        elif model_output.shape[1] != channels:
            raise ValueError(
                f"The network returned {model_output.shape[1]} channels for a sample of {channels}; expected "
                f"{channels}, or {2 * channels} with a learned variance."
            )
        dtype = torch.promote_types(working_dtype(sample), working_dtype(model_output))
        x, output = sample.to(dtype), model_output.to(dtype)
        variance = None if variance is None else variance.to(dtype)
        signal, spread = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        if prediction_type == "epsilon":
            if alpha_bar == 0:
                raise ValueError(
                    "A noise prediction does not determine the clean image where the sample holds no signal (zero "
                    "terminal SNR); use a network that predicts v_prediction or sample."
                )
            noise, original = output, (x - spread * output) / signal
        elif prediction_type == "sample":
            noise, original = (x - signal * output) / spread, output
        elif prediction_type == "v_prediction":
            return cls(signal * output + spread * x, signal * x - spread * output, output, variance)
        else:
            raise ValueError(f"`prediction_type` is {prediction_type!r}; use epsilon, sample or v_prediction.")
        return cls(noise, original, signal * noise - spread * original, variance)
