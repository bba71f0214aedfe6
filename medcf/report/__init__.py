# SPDX-License-Identifier: Apache-2.0
"""Pictures of runs."""

from __future__ import annotations

from medcf.report.contact_sheet import SheetColumn, read_run, summary_figure

__all__ = ["SheetColumn", "read_run", "summary_figure"]
