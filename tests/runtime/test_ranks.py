# SPDX-License-Identifier: Apache-2.0
"""Processes under torchrun: one goes first, nobody waits for the dead, and nothing is lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from medcf.data import Case
from medcf.inference.cases import PendingBatches
from medcf.inference.run_folder import RunFolder
from medcf.runtime import ranks

PROGRAM = """
import json, os, signal, sys, time
from datetime import timedelta
from medcf.runtime import ranks
folder, case = sys.argv[1:]
if case in ("one hangs", "main hangs"):
    ranks.WAIT = timedelta(seconds=2)
def work():
    if case == "main fails":
        raise ValueError("no images in there")
    time.sleep(4 if case == "main hangs" else 0.3)
    open(f"{folder}/made", "w").write("x")
    return {"from": ranks.rank()}
assert ranks.run_on_main("work", work) == {"from": 0}
seen = open(f"{folder}/made").read() + str(ranks.rank())
if ranks.rank() == 1 and case == "one dies":
    os.kill(os.getpid(), signal.SIGKILL)
if ranks.rank() == 1 and case in ("one is slow", "one hangs"):
    time.sleep(4)
values = ranks.collect("values", {"seen": seen})
print(json.dumps(values))
"""


def processes(tmp_path, case, count=2):
    """Start processes as another starter than torchrun does, so that nobody but they can notice a death."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        words = [sys.executable, "-c", PROGRAM, str(tmp_path), case]
        started.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    outputs = [process.communicate(timeout=100) for process in started]
    return [(process.returncode, *map(bytes.decode, output)) for process, output in zip(started, outputs, strict=True)]


def test_main_goes_first_and_gets_everything_also_from_a_slow_process(tmp_path):
    main, other = processes(tmp_path, "one is slow")
    assert main[0] == other[0] == 0, main[2] + other[2]
    assert main[1].strip() == '[{"seen": "x0"}, {"seen": "x1"}]'
    assert other[1].strip() == "[]"


def test_what_fails_on_main_fails_everywhere_with_its_reason(tmp_path):
    main, other = processes(tmp_path, "main fails")
    assert main[0] == other[0] == 1
    assert "ValueError: no images in there" in main[2].splitlines()[-1]
    assert "no images in there" in other[2].splitlines()[-1]


def test_nobody_waits_for_a_dead_process(tmp_path):
    started = time.monotonic()
    main, other = processes(tmp_path, "one dies")
    assert other[0] == -9
    assert main[0] == 1
    assert "A process is gone" in main[2]
    assert "Rank 1 failed" in main[2]
    assert "start the same command again" in main[2].splitlines()[-1]
    assert time.monotonic() - started < 60  # and not WAIT, a day


@pytest.mark.parametrize("case", ["one hangs", "main hangs"])
def test_who_hangs_is_waited_for_no_longer_than_the_timeout(tmp_path, case):
    for code, _, errors in processes(tmp_path, case):
        assert code == 1
        assert "A process is gone" in errors
        assert "start the same command again" in errors.splitlines()[-1]


def test_three_processes_go_on_and_end_together(tmp_path):
    results = processes(tmp_path, "one is slow", count=3)
    assert [result[0] for result in results] == [0, 0, 0], results
    assert results[0][1].strip() == '[{"seen": "x0"}, {"seen": "x1"}, {"seen": "x2"}]'


def test_without_torchrun_every_call_is_direct(monkeypatch):
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_: pytest.fail("a single process joins nobody"))
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    assert ranks.run_on_main("a", lambda: object) is object
    assert ranks.collect("a", 4) == [4]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_batch_belongs_to_one_process_and_stays_whole(tmp_path, monkeypatch, count):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"a")
    cases = [Case(str(index), (picture,)) for index in range(11)]
    folder = RunFolder(tmp_path / "out")
    folder.open(cases)
    for case in ("0", "1", "2"):
        folder.complete(case, {"case": case})
    folder._lock.close()
    folder = RunFolder(tmp_path / "out")
    folder.open(cases)
    folder.complete("10", {"case": "10"})  # by another process, meanwhile: must not change who takes what
    shards = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))
        shards.append(list(PendingBatches(cases, folder, 2)))
    batches = [batch for shard in shards for batch in shard]
    assert sorted(batches) == [[2, 3], [4, 5], [6, 7], [8, 9], [10]]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(0, False, "cpu"), (0, True, "mps"), (2, True, "cuda:1")])
def test_the_device_is_the_process_own_gpu_then_apples_then_the_cpu(monkeypatch, cuda, mps, expected):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(ranks.local_device()) == expected
