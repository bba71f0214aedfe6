# SPDX-License-Identifier: Apache-2.0
"""Bundles in the cache of huggingface_hub, whose files are links into blobs."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import medcf
from medcf.bundle import expect_own_models, export_bundle
from medcf.bundle.source import find_bundle
from medcf.phantoms import write_demo

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffice"
FAST = {"method": "unchanged", "progress": False, "device": "cpu", "amp": False}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path):
    """Lay out a bundle as the hub's client does: blobs by hash, and links to them in a snapshot by commit."""
    folder = tmp_path / "hub" / "models--someone--diffice"
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for file in sorted(path for path in BUNDLE.rglob("*") if path.is_file()):
        blob = folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        link = folder / "snapshots" / COMMIT / file.relative_to(BUNDLE)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(file.relative_to(BUNDLE).parts) + 1), "blobs", blob.name))
    return folder


@pytest.fixture
def image(tmp_path):
    write_demo(tmp_path / "images", count=1, formats=("png",))
    (path,) = (tmp_path / "images").iterdir()
    return path


@pytest.mark.slow
def test_a_bundle_in_the_hubs_cache_is_loaded_offline(cache, image, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = hub.snapshot_download("someone/diffice", cache_dir=cache.parent, local_files_only=True)
    assert Path(found) == cache / "snapshots" / COMMIT
    expected = medcf.load(BUNDLE, **FAST)(image).row["confidence_before"]
    for source in (found, cache):
        explain = medcf.load(source, **FAST)
        assert explain(image).row["confidence_before"] == expected
        assert "bundle='diffice'" in repr(explain)  # not the commit


def test_without_a_main_reference_the_only_snapshot_is_taken(cache):
    (cache / "refs" / "main").unlink()
    assert find_bundle(cache) == (cache / "snapshots" / COMMIT, None)
    shutil.copytree(cache / "snapshots" / COMMIT, cache / "snapshots" / "other", symlinks=True)
    with pytest.raises(ValueError, match=rf"give one of its folders snapshots/HASH \({COMMIT}, other\)"):
        find_bundle(cache)
    (cache / "refs" / "main").write_text("other\n")
    assert find_bundle(cache)[0].name == "other"


def test_a_cache_without_a_bundle_is_named(tmp_path):
    (tmp_path / "snapshots" / COMMIT).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"does not hold a bundle: no snapshot has configs/inference\.json"):
        find_bundle(tmp_path)


def test_weights_in_a_hubs_cache_are_not_replaced_by_ones_own(cache):
    root = cache / "snapshots" / COMMIT
    with pytest.raises(ValueError, match="would replace the bundle's"):
        expect_own_models(root / "models" / "model.pt", root, "images", None)


def test_an_archive_of_a_snapshot_holds_the_files_themselves(cache, tmp_path):
    ours, _ = export_bundle(BUNDLE, "zip", tmp_path / "ours")
    theirs, _ = export_bundle(cache, "zip", tmp_path / "theirs")
    assert theirs.read_bytes() == ours.read_bytes()
