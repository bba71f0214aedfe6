# SPDX-License-Identifier: Apache-2.0
"""Reading studies, lists of cases, the network's grid, and phantoms."""

from __future__ import annotations

from medcf.data.errors import UnreadableImage
from medcf.data.pixels import get_spacing, to_luminance
from medcf.data.readers import inspect_study, read_study, sniff

__all__ = ["UnreadableImage", "get_spacing", "inspect_study", "read_study", "sniff", "to_luminance"]
