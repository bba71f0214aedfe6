# SPDX-License-Identifier: Apache-2.0
"""One method over all cases in a separate process, so that time and memory are measured separately."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.rows import Row
from benchmarks.counterfactual.task import Cases, Recipe
from medcf.runtime.performance import autocast
from medcf.training.state import save_atomically

__all__ = ["Result", "Setup", "mean_of", "obtain"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """Where and how the methods run; part of what a stored result answers to.

    Attributes:
        device: torch device.
        threads: threads of torch on a CPU.
        seed: seed of all noise.
    """

    device: str = "cpu"
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What a method made of N cases, and what it cost.

    Attributes:
        image: counterfactuals (N, 1, H, W).
        trajectory: (N, L + 1, 1, H, W), the input first.
        confidences: f's probability of the target at each iterate (N, L + 1).
        flipped: (N,).
        unchanged: inputs that f already gives the target class (N,).
        evaluations: evaluations of the denoiser per case (N,).
        seconds: of all cases together.
        peak_mib: memory above that of the process with its networks, in MiB.
    """

    image: Tensor
    trajectory: Tensor
    confidences: Tensor
    flipped: Tensor
    unchanged: Tensor
    evaluations: Tensor
    seconds: float
    peak_mib: float

    def where(self, mask: Tensor) -> Result:
        """Keep the cases (N,) that are true; the cost stays that of all."""
        columns = {name: value[mask] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **columns)


def obtain(row: Row, recipe: Recipe, cases: Cases, setup: Setup, work: Path) -> Result:
    """Return a method's result over the cases: the stored one if it answers to the same question, else a new one.

    Args:
        row: the method and its options; with ``toward_own_class`` the targets of the cases must be their own classes.
        recipe: the bundle.
        cases: the inputs.
        setup: where to run.
        work: folder of stored results.

    Raises:
        RuntimeError: the method failed; the message ends with its own.
    """
    if row.num_seeds > 1:
        single = replace(row, name=re.sub(r"_expected_\d+", "", row.name), num_seeds=1)
        seeds = range(setup.seed, setup.seed + row.num_seeds)
        parts = [obtain(single, recipe, cases, replace(setup, seed=seed), work) for seed in seeds]
        return mean_of(parts, _target(recipe, cases), recipe.open({}).get_parsed_content("classifier"))
    question = {
        "recipe": asdict(recipe),
        "content": recipe.digest(row.overrides),
        "overrides": row.overrides,
        "setup": asdict(setup),
        "cases": _digest(cases),
        "run_unchanged": row.toward_own_class,
    }
    path = work / f"{row.name}-{_hash(json.dumps(question, sort_keys=True, default=str))}.pt"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        inputs = work / f"cases-{question['cases']}.pt"
        if not inputs.is_file():
            wanted = {} if cases.target is None else {"target": cases.target}
            save_atomically({"image": cases.image, "case": cases.case, **wanted}, inputs)
        spec = path.with_suffix(".json")
        spec.write_text(json.dumps(question, indent=2, default=str) + "\n", encoding="utf-8")
        logger.info("%s: running on %d cases", row.label, len(cases))
        command = [sys.executable, "-m", "benchmarks.counterfactual.run", str(spec), str(inputs), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{row.label} failed:\n{done.stderr[-3000:]}")
    return Result(**torch.load(path, weights_only=True))


def _digest(cases: Cases) -> str:
    wanted = b"" if cases.target is None else cases.target.numpy().tobytes()
    return _hash(cases.image.numpy().tobytes() + "\n".join(cases.case).encode() + wanted)


def _hash(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:12]


def _explain(question: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Run the method in this process."""
    setup = Setup(**question["setup"])
    torch.set_num_threads(setup.threads)
    device = torch.device(setup.device)
    recipe = Recipe(**{**question["recipe"], "configs": tuple(question["recipe"]["configs"])})
    parser = recipe.open({**question["overrides"], "device": f"$torch.device({setup.device!r})", "seed": setup.seed})
    network, inferer = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
    batch_size, amp = parser.get_parsed_content("batch_size"), parser.get_parsed_content("amp")
    image, case, target = inputs["image"], list(inputs["case"]), inputs.get("target")
    options = {"run_unchanged": True} if question["run_unchanged"] else {}
    with autocast(device, enabled=amp):

        def explain(first: int) -> Any:
            part = slice(first, first + batch_size)
            wanted = None if target is None else target[part].to(device)
            return inferer.explain(image[part].to(device), network, sample_ids=case[part], target=wanted, **options)

        if parser.get("compile") or device.type == "cuda":
            explain(0)  # compilation and the choice of kernels are paid once a process, not once a case
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        before, start = _memory(device, restart=True), time.perf_counter()
        parts = [explain(first) for first in range(0, len(case), batch_size)]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds, peak = time.perf_counter() - start, _memory(device) - before
    columns = {
        name: torch.cat([getattr(part, source).detach().as_subclass(Tensor).cpu() for part in parts])
        for name, source in {
            "image": "image",
            "trajectory": "trajectory",
            "confidences": "confidences",
            "flipped": "flipped",
            "unchanged": "unchanged",
            "evaluations": "num_function_evaluations",
        }.items()
    }
    return {**columns, "seconds": seconds, "peak_mib": peak}


def mean_of(parts: Sequence[Result], target: Tensor, classifier: Callable[[Tensor], Tensor]) -> Result:
    """Return the mean of the results of several seeds, judged as an image of its own, with the cost of all."""
    means = {
        name: torch.stack([getattr(part, name) for part in parts]).mean(0)
        for name in ("image", "trajectory", "confidences")
    }
    with torch.no_grad():
        logits = torch.cat([classifier(some) for some in means["image"].float().split(8)])
    return Result(
        **means,
        flipped=(logits.argmax(1) == target) & ~parts[0].unchanged,
        unchanged=parts[0].unchanged,
        evaluations=torch.stack([part.evaluations for part in parts]).sum(0),
        seconds=sum(part.seconds for part in parts),
        peak_mib=max(part.peak_mib for part in parts),
    )


def _target(recipe: Recipe, cases: Cases) -> Tensor:
    """Return the target class of each case."""
    if cases.target is not None:
        return cases.target
    wanted = recipe.open({}).get_parsed_content("shared_options")["target"]
    return torch.full((len(cases),), int(wanted))


def _memory(device: torch.device, *, restart: bool = False) -> float:
    """Peak in MiB: of the allocator on a GPU, of the process's resident memory on a CPU.

    Args:
        device: where to measure.
        restart: forget the peak so far, such as that of loading the networks (Linux; elsewhere it stays).
    """
    if device.type == "cuda":
        if restart:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if restart:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    """Run one method: the question, the cases, and where the answer goes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counterfactual.run", description=__doc__)
    for name in ("question", "inputs", "output"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    question = json.loads(options.question.read_text(encoding="utf-8"))
    save_atomically(_explain(question, torch.load(options.inputs, weights_only=True)), options.output)


if __name__ == "__main__":
    main()
