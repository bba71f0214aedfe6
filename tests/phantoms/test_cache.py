# SPDX-License-Identifier: Apache-2.0
"""Arrays kept in a file: read when they are what was asked for, made again when not, never half written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcf.phantoms.cache import cached_arrays, make_rows

SQUARES = {"square": np.arange(500.0) ** 2, "name": np.array(["a", "bc"])}


def squares() -> dict[str, Any]:
    return dict(SQUARES)


def never() -> dict[str, Any]:
    raise AssertionError("made although the file holds it")


def assert_squares(arrays: dict[str, Any]) -> None:
    assert set(arrays) == set(SQUARES)
    for name, values in SQUARES.items():
        assert arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(arrays[name], values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that holds the squares."""
    file = tmp_path / "sub" / "squares.npz"
    assert_squares(cached_arrays(file, "squares", squares))
    return file


def test_what_the_file_holds_is_not_made_again(path: Path) -> None:
    assert_squares(cached_arrays(path, "squares", never))
    assert [file.name for file in path.parent.iterdir()] == ["squares.npz"]


def test_nothing_is_kept_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_squares(cached_arrays(None, "squares", squares))
    assert not list(tmp_path.iterdir())


def flip(content: bytes) -> bytes:
    """Change the kind of the first block of compressed data, so that it cannot be decompressed at all."""
    start = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    return content[:start] + bytes([content[start] | 0b110]) + content[start + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:300], lambda content: b"no archive", lambda content: b"", flip],
    ids=["cut off", "no archive", "empty", "flipped bit"],
)
def test_a_damaged_file_is_made_again(
    path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(damage(path.read_bytes()))
    assert_squares(cached_arrays(path, "squares", squares))
    assert f"{path} is damaged" in caplog.text
    assert_squares(cached_arrays(path, "squares", never))


def test_another_set_is_replaced(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert cached_arrays(path, "cubes", lambda: {"cube": np.array([8])})["cube"] == 8
    assert f"{path} holds another set" in caplog.text
    assert cached_arrays(path, "cubes", never)["cube"] == 8


def test_a_save_that_is_interrupted_leaves_the_old_file_or_none(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(file: Any, **arrays: Any) -> None:
        file.write(b"PK half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medcf.phantoms.cache.np.savez_compressed", interrupted)
        for file in (path, tmp_path / "new.npz"):
            with pytest.raises(KeyboardInterrupt):
                cached_arrays(file, "cubes", squares)
    assert_squares(cached_arrays(path, "squares", never))
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["squares.npz"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_are_stacked_in_the_order_of_their_jobs(num_workers: int) -> None:
    jobs = ["ab" + "b" * count for count in range(9)]
    arrays = make_rows(Counter, jobs, title="letters", unit="word", num_workers=num_workers, progress=False)
    assert {name: values.tolist() for name, values in arrays.items()} == {"a": [1] * 9, "b": list(range(1, 10))}


def test_rows_keep_the_types_and_shapes_of_their_values() -> None:
    def row(number: int) -> dict[str, Any]:
        return {"half": np.float32(number / 2), "digits": np.array([number // 10, number % 10], np.uint8)}

    arrays = make_rows(row, [3, 42], title="rows", unit="row", progress=False)
    assert arrays["half"].dtype == np.float32
    assert arrays["half"].tolist() == [1.5, 21]
    assert arrays["digits"].dtype == np.uint8
    assert arrays["digits"].tolist() == [[0, 3], [4, 2]]
