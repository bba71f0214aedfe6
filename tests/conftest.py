# SPDX-License-Identifier: Apache-2.0
"""What every test shares: one thread, no network, and the closed-form denoiser."""

from __future__ import annotations

import os

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
