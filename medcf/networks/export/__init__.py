# SPDX-License-Identifier: Apache-2.0
"""Denoisers as files for other runtimes: TorchScript, ``torch.export`` and ONNX."""

from __future__ import annotations

from medcf.networks.export.formats import SUFFIXES, Format, export_network
from medcf.networks.export.onnx_network import OnnxNetwork
from medcf.networks.export.signature import Signature

__all__ = ["SUFFIXES", "Format", "OnnxNetwork", "Signature", "export_network"]
