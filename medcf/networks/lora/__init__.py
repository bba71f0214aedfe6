# SPDX-License-Identifier: Apache-2.0
"""Low-rank adaptation (LoRA) of denoisers and text encoders."""

from __future__ import annotations

from medcf.networks.lora.adapters import Adapters
from medcf.networks.lora.merged import adapter_files, with_adapters

__all__ = ["Adapters", "adapter_files", "with_adapters"]
