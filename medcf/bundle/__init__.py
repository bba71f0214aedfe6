# SPDX-License-Identifier: Apache-2.0
"""Bundles: finding, loading and exporting them, checking their command line, and checking their completeness."""

from __future__ import annotations

from medcf.bundle.backend import with_backend
from medcf.bundle.export import export_bundle
from medcf.bundle.load import load
from medcf.bundle.options import check_options
from medcf.bundle.overlay import expect_base
from medcf.bundle.root import bundle_folder, expect_own_models, find_bundle_root
from medcf.bundle.verify import verify_bundle

__all__ = [
    "bundle_folder",
    "check_options",
    "expect_base",
    "expect_own_models",
    "export_bundle",
    "find_bundle_root",
    "load",
    "verify_bundle",
    "with_backend",
]
