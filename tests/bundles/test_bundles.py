# SPDX-License-Identifier: Apache-2.0
"""Every bundle of the repository passes the whole bundle check."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcf.bundle import verify_bundle

BUNDLES = sorted(path for path in (Path(__file__).parents[2] / "bundles").iterdir() if path.is_dir())


@pytest.mark.bundle
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_bundle_is_whole(bundle: Path) -> None:
    assert verify_bundle(bundle) == []
