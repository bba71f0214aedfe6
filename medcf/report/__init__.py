# SPDX-License-Identifier: Apache-2.0
"""Pictures of cases and runs."""

from __future__ import annotations

from medcf.report.panel import PanelWriter, draw_panel

__all__ = ["PanelWriter", "draw_panel"]
