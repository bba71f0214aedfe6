# SPDX-License-Identifier: Apache-2.0
"""Do the tests notice a change of meaning? One change at a time: ``python -m benchmarks.mutants``.

Each mutant is a small change that a careless refactoring could make and that changes a result or takes away a guard.
It is made in a scratch copy of the tree, never in the tree itself. The tests that mirror its file
(``tests/<room>/test_<module>*.py``) run first and, if they pass, all tests of the room. A mutant that they let pass
has survived: a test is missing. The exit status is the number of survivors.

``--only NAME`` runs one mutant, or several if it is repeated; ``--jobs`` runs so many at a time. Without ``--only`` the
rooms' tests run on the unchanged copy first, because a failing tree kills every mutant.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant", "mutate"]

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
PARTS = ("medcf", "tests", "bundles", "benchmarks", "docs", "pyproject.toml", *PAGES)


class Mutant(NamedTuple):
    """One change of the code.

    Attributes:
        name: what is wrong with it.
        file: relative to ``medcf``.
        old: code that occurs exactly once in the file.
        new: what takes its place.
    """

    name: str
    file: str
    old: str
    new: str

    @property
    def room(self) -> str:
        """Folder of the tests."""
        return f"tests/{self.file.partition('/')[0]}"


# fmt: off
MUTANTS = tuple(Mutant(*row) for row in (
    ("strength-truncated", "schedulers/base.py",
     'int(share) if self.strength_rule == "truncated" else round(share)', "int(share)"),
    ("start-two-steps-further", "schedulers/base.py", "min(depth, len(self._kept)", "min(depth + 1, len(self._kept)"),
    ("copy-forgets-final-alpha", "schedulers/base.py",
     "self._alpha_bars, self._final_alpha_bar = list(other._alpha_bars), other._final_alpha_bar",
     "self._alpha_bars = list(other._alpha_bars)"),
    ("noise-after-last-step", "schedulers/ddpm.py", "variance=gain if self.position(t) > 0 else 0.0", "variance=gain"),
    ("large-variance-at-end", "schedulers/ddpm.py",
     "self._beta(t) if self.position(t) > 0 else self._floor_variance(t)", "self._beta(t)"),
    ("direction-keeps-variance", "schedulers/ddim.py", "max(1 - alpha_bar_prev - variance, 0.0)", "1 - alpha_bar_prev"),
    ("inverse-gain-sign", "schedulers/ddim_inverse.py", "gain=-effect", "gain=effect"),
    ("spacing-multiplied", "schedulers/spacing.py",
     "round(position) for position in accumulate(repeat((total - 1) / (count - 1), count - 1), initial=0.0)",
     "round(i * (total - 1) / (count - 1)) for i in range(count)"),

    ("mask-one-step-later", "guidance/regions.py", "self._steps >= self.start", "self._steps > self.start"),
    ("composite-always", "guidance/regions.py", "timesteps[-1] and self.final_composite:", "timesteps[-1]:"),
    ("equal-image-changes-everywhere", "guidance/regions.py", " & (largest > 0)", ""),
    ("gradient-due-one-step-early", "guidance/estimators.py",
     "self._steps % self.every", "(self._steps + 1) % self.every"),
    ("layers-summed", "guidance/loss.py", "torch.stack(layers).mean(dim=0)", "torch.stack(layers).sum(dim=0)"),
    ("scale-zero-ignored", "guidance/loss.py", "self.classifier_scale if classifier_scale is None else",
     "self.classifier_scale if not torch.is_tensor(classifier_scale) and not classifier_scale else"),

    ("background-tolerant", "guidance/regions.py", "(image == -1)", "(image <= -0.9)"),
    ("noise-by-first-strength", "inferers/method.py",
     "if strength == 1 and", "if options.strengths[0] == 1 and"),
    ("floor-keeps-threshold", "inferers/seeds.py", ', "confidence_threshold": None}', "}"),
    ("reconstruction-counts-as-flip", "inferers/method.py", "state.flipped &= ~hit", "pass"),
    ("threshold-strict", "inferers/method.py",
     "state.confidence < options.confidence", "state.confidence <= options.confidence"),
    ("first-strength-for-all-passes", "inferers/method.py",
     "options.strengths[min(number, len(options.strengths) - 1)]", "options.strengths[0]"),
    ("hit-needs-more-confidence", "inferers/scales.py", "undecided & (hit | (confidence > kept[waiting]))",
     "undecided & (confidence > kept[waiting])"),
    ("scales-unsorted", "inferers/options.py", "tuple(sorted(numbers(self.classifier_scales)))",
     "numbers(self.classifier_scales)"),
    ("last-residual-dropped", "inferers/residuals.py", "mean=step.mean + self.residuals[step.timestep]",
     "mean=step.mean + (self.residuals[step.timestep] if step.variance else 0)"),
    ("latents-unshifted", "sampling/space.py", "(mean - self._channels(self.shift, mean))", "mean"),
    ("levels-start-at-null", "networks/stack.py", "lowest = next(row for row in column if row >= 0)", "lowest = 0"),
    ("inner-chain-repeats-a-step", "inferers/dime.py", "index(step.timestep) + 1 :", "index(step.timestep) :"),
    ("mask-after-gradient", "inferers/fastdime.py", 'if options.gradient_at == "masked" else', "if False else"),
    ("stop-timestep-free", "inferers/ilvr.py", "step.timestep < self.options", "step.timestep <= self.options"),
    ("attack-leaves-range", "inferers/method.py",
     "            image = image.clamp(-1, 1)\n        if state.region", "            pass\n        if state.region"),
    ("reference-of-last-pass", "inferers/attention_injection.py", "start=chain.original[first]",
     "start=chain.start[first]"),
    ("round-trip-of-raw-image", "inferers/ddim_inversion.py",
     "finished(self, decode(sample), run.state, index)",
     "decode(sample)"),

    ("variance-of-null", "networks/denoiser.py", "[mixed, below[:, channels:]]",
     "[mixed, output[self.first][:, channels:]]"),
    ("log-of-zero", "networks/classifier_adapter.py", "found.clamp(min=tiny).log()", "found.log()"),
    ("null-is-class-0", "networks/class_token.py", "(timesteps, self.num_class_embeds - 1,", "(timesteps, 0,"),
    ("weight-unscaled", "networks/attention_injection.py", "math.log(weight) / scale", "math.log(weight)"),

    ("labels-beyond-grid", "data/resample.py", "[(slice(None), *nearest)] * inside", "[(slice(None), *nearest)]"),
    ("edges-held-forever", "data/resample.py", ".clamp(min=0) * inside", ".clamp(min=0)"),
    ("half-voxel-strict", "data/grid.py", "share >= 0.5 - _ROUNDING", "share > 0.5"),
    ("black-is-darkest", "data/grid.py", "return min(darkest, 0.0), high", "return darkest, high"),
    ("picture-moved-if-all-too-long", "data/grid.py", "size * steps + 1).any()", "size * steps + 1).all()"),
    ("middle-is-mean", "data/subject.py", "(world.min(axis=0) + world.max(axis=0)) / 2", "world.mean(axis=0)"),
    ("spacing-axes-swapped", "data/image.py", "picture_affine(spacing[::-1])", "picture_affine(spacing)"),

    ("tolerance-strict", "metrics/localization.py", "distance <= self.tolerance", "distance < self.tolerance"),
    ("ties-split", "metrics/localization.py", "iou[last].max()", "iou.max()"),
    ("truth-outside-mask", "metrics/localization.py",
     "truth[case, 0] & inside[case, 0], inside", "truth[case, 0], inside"),
    ("last-pixels-left-out", "metrics/cout.py", "* pixels // steps", "* (pixels // steps)"),
    ("groups-as-trials", "metrics/bootstrap.py",
     "if proportion and (len(members) == len(cases) or (cases == cases[0]).all()):", "if proportion:"),
    ("mean-of-ratios", "metrics/truth.py", "float(part.sum() / whole.sum())", "float((part / whole).mean())"),
    ("infinite-logits-flip", "metrics/exclusions.py", "(logits.argmax(1) == target) & logits.isfinite().all(1)",
     "logits.argmax(1) == target"),

    ("foreign-folder-emptied", "runtime/owned.py", "if (leftover / RECORD).is_file():", "if leftover.is_dir():"),
    ("record-forgets-old-files", "runtime/owned.py", "sorted(before.union(made, more))", "sorted({*made, *more})"),
    ("merge-forgets-finished", "inference/run_folder.py",
     "len(self.finished_before) + self.completed", "self.completed"),
    ("changed-frame-accepted", "runtime/manifest.py", " and case not in finished", ""),
    ("result-of-other-run", "inference/run_folder.py", "(folder / MARKER).is_file() or run_of(folder) != run:",
     "(folder / MARKER).is_file():"),
    ("foreign-manifest-replaced", "inference/run_folder.py",
     "for name in (*TABLES, MANIFEST) if", "for name in TABLES if"),
    ("saliency-everywhere", "inference/writers.py", "saliency[~result.mask] = 0", "pass"),
    ("failed-case-in-batch", "inference/evaluator.py", "= [item for item, _ in pairs]", "= items"),

    ("picture-above-white", "transforms/difference.py", "changed.clamp_(max=max(high, float(original.max())))", "pass"),
    ("range-forgotten", "transforms/difference.py", "low, high = record.intensity", "low, high = 0.0, 1.0"),
    ("below-window-lifted", "transforms/difference.py", "min=min(low, float(original.min()))", "min=low"),
    ("maximum-before-mean", "transforms/difference_map.py",
     "absolute.mean(0).clamp(min=0)", "absolute.clamp(min=0).mean(0)"),
    ("spread-of-population", "transforms/difference_map.py", "signed.std(0)", "signed.std(0, correction=0)"),
    ("ellipse-for-each-image", "transforms/vignette.py", "randomize=not drawn", "randomize=True"),
))
# fmt: on


def mutate(source: str, mutant: Mutant) -> str:
    """Return the text of a file with the change.

    Raises:
        ValueError: the old code does not occur exactly once; the mutant must follow the code.
    """
    if source.count(mutant.old) != 1:
        found = source.count(mutant.old)
        raise ValueError(f"{mutant.name}: {mutant.old!r} occurs {found} times in medcf/{mutant.file}, not once.")
    return source.replace(mutant.old, mutant.new)


def verdict(mutant: Mutant, timeout: float) -> str:
    """Tell which tests killed a mutant, or that none did."""
    with tempfile.TemporaryDirectory(prefix="medcf-mutant-") as folder:
        copy = _copied(Path(folder))
        target = copy / "medcf" / mutant.file
        target.write_text(mutate(target.read_text(encoding="utf-8"), mutant), encoding="utf-8")
        mirror = sorted(str(path.relative_to(copy)) for path in (copy / mutant.room).glob(f"test_{target.stem}*.py"))
        for paths in filter(None, (mirror, [mutant.room])):
            if failed := _run(copy, paths, timeout):
                return f"killed    {failed}"
    return "SURVIVED"


def _copied(folder: Path) -> Path:
    """Copy what the tests need."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".*cache"))
        else:
            shutil.copy2(source, folder / part)
    return folder


def _run(copy: Path, paths: Sequence[str], timeout: float) -> str:
    """Run tests in a copy; returns the first that failed, empty if they pass.

    Raises:
        RuntimeError: pytest could not run them.
    """
    command = [sys.executable, "-m", "pytest", *paths, "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    # no bytecode: it is told from its source by size and second, which a mutant may share with another
    settings = {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command,
        cwd=copy,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the tests' own children, too
        process.communicate()
        return f"{paths[0]} took more than {timeout:.0f} s"
    if process.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run {paths} (exit {process.returncode}):\n{output[-2000:]}")
    failed = [line.split(" - ")[0] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return (failed or ["a test"])[0] if process.returncode else ""


def _check_unchanged(rooms: Sequence[str], timeout: float) -> None:
    """Refuse a tree whose own tests fail."""
    with tempfile.TemporaryDirectory(prefix="medcf-mutant-") as folder:
        copy = _copied(Path(folder))
        for room in rooms:
            if failed := _run(copy, [room], timeout):
                raise RuntimeError(f"The unchanged tree fails, so nothing can be said of its mutants: {failed}")
            sys.stdout.write(f"{room:66}passes unchanged\n")
            sys.stdout.flush()


def main() -> int:
    """Print what became of each mutant; the exit status is the number of survivors."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("--only", action="append", choices=[each.name for each in MUTANTS], metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one run of tests may take")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    for mutant in MUTANTS:  # all of them: one that no longer fits its code is told before an hour of tests
        mutate((ROOT / "medcf" / mutant.file).read_text(encoding="utf-8"), mutant)
    if not options.only:
        _check_unchanged(list(dict.fromkeys(mutant.room for mutant in chosen)), options.timeout)
    survivors = []
    with ThreadPoolExecutor(options.jobs) as pool:
        verdicts = pool.map(lambda mutant: verdict(mutant, options.timeout), chosen)
        for mutant, found in zip(chosen, verdicts, strict=True):
            survivors += [mutant.name] if found == "SURVIVED" else []
            sys.stdout.write(f"{mutant.name:32}{mutant.file:34}{found}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - len(survivors)} of {len(chosen)} killed; survivors: {survivors or 'none'}\n")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(main())
