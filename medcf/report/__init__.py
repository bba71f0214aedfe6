# SPDX-License-Identifier: Apache-2.0
"""Pictures of cases and runs."""

from __future__ import annotations

from medcf.inference.panel import PanelWriter, draw_panel
from medcf.inference.volume_panel import VolumePanelWriter, draw_volume_panel
from medcf.report.contact_sheet import SheetColumn, read_run, summary_figure

__all__ = [
    "PanelWriter",
    "SheetColumn",
    "VolumePanelWriter",
    "draw_panel",
    "draw_volume_panel",
    "read_run",
    "summary_figure",
]
