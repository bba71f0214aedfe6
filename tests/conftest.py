# SPDX-License-Identifier: Apache-2.0
"""What every test shares: one thread, no network, and the closed-form denoiser."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Child processes, too: busy OpenMP threads on a shared machine spin against each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# One thread is reproducible, and faster beside other processes.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


class GaussianNetwork(torch.nn.Module):
    """The exact denoiser of independent pixels N(mean, std^2) under MONAI's linear schedule of 1000 steps."""

    def __init__(self, mean: float, std: float, prediction_type: str = "epsilon") -> None:
        super().__init__()
        self.mean, self.std, self.prediction_type = mean, std, prediction_type
        self.table = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()

    def forward(self, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        a = self.table[int(timesteps[0])]
        slope = a**0.5 * self.std**2 / (a * self.std**2 + 1 - a)
        clean = self.mean + slope * (sample - a**0.5 * self.mean)
        noise = (sample - a**0.5 * clean) / (1 - a) ** 0.5
        if self.prediction_type == "epsilon":
            return noise
        return clean if self.prediction_type == "sample" else a**0.5 * noise - (1 - a) ** 0.5 * clean


@pytest.fixture
def gaussian_network() -> type[torch.nn.Module]:
    """The closed-form denoiser: ``gaussian_network(mean, std, prediction_type)``."""
    return GaussianNetwork


@pytest.fixture
def tiny_unet() -> Callable[..., torch.nn.Module]:
    """A small MONAI U-Net whose zero-initialized weights were perturbed: ``tiny_unet(**overrides)``."""

    def build(**overrides: object) -> torch.nn.Module:
        from monai.networks.nets import DiffusionModelUNet

        torch.manual_seed(0)
        options = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": (8, 16)}
        options |= {"attention_levels": (False, True), "norm_num_groups": 8, "num_head_channels": 8}
        network = DiffusionModelUNet(**(options | overrides))
        for weight in network.parameters():
            if weight.ndim > 1 and not weight.any():
                torch.nn.init.normal_(weight, std=0.1)
        return network.eval()

    return build


@pytest.fixture(scope="session")
def heads() -> ModuleType:
    """Small heads with known geometry, see ``tests/data/heads.py``."""
    from tests.data import heads

    return heads
