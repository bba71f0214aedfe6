# SPDX-License-Identifier: Apache-2.0
"""What a run may still be continued with, and what makes it another one."""

from __future__ import annotations

import json

import pytest

from medcf.runtime.manifest import MANIFEST, continue_manifest, new_manifest, read_manifest


def manifest(**hashes):
    return new_manifest({"target": 1}, {}, 0, {case: f"{case}.png" for case in hashes}, hashes)


def test_images_may_come_and_go(tmp_path, caplog):
    previous = manifest(a="1", b="2")
    continue_manifest(tmp_path, previous, manifest(b="2", c="3"), finished=["a"])
    assert {case: entry["sha256"] for case, entry in previous["inputs"].items()} == {"a": "1", "b": "2", "c": "3"}
    assert previous["fingerprint"]["inputs"] == {"a": "1", "b": "2", "c": "3"}
    assert "1 images of this run no longer exist, a first" in caplog.text


def test_a_changed_image_is_refused_unless_it_failed_and_no_result_depends_on_it(tmp_path):
    with pytest.raises(ValueError, match=r"inputs changed: a\n.*--overwrite true"):
        continue_manifest(tmp_path, manifest(a="1"), manifest(a="2"), finished=[])
    failed = manifest(a="1") | {"failed": ["a.png"]}
    continue_manifest(tmp_path, failed, manifest(a="2"), finished=[])
    assert failed["inputs"]["a"]["sha256"] == "2"
    with pytest.raises(ValueError, match="inputs changed: a"):  # one of its frames is done
        continue_manifest(tmp_path, manifest(a="1") | {"failed": ["a.png"]}, manifest(a="2"), finished=["a"])


@pytest.mark.parametrize(("text", "reason"), [("{", "damaged"), ("{}", "it lacks")])
def test_a_damaged_manifest_is_named_and_a_foreign_one_is_none(tmp_path, text, reason):
    assert read_manifest(tmp_path) is None
    (tmp_path / MANIFEST).write_text(text)
    assert read_manifest(tmp_path) is None  # not medcf's
    (tmp_path / MANIFEST).write_text(json.dumps(manifest(a="1")))
    assert read_manifest(tmp_path)["seed"] == 0
    whole = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(whole[:-20] if text == "{" else whole.replace('"sessions"', '"other"'))
    with pytest.raises(ValueError, match=reason):
        read_manifest(tmp_path)
