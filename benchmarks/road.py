# SPDX-License-Identifier: Apache-2.0
"""The path of one image through a bundle's job: the modules it enters, and the depth of the loop.

``python -m benchmarks.road --bundle diffice --dataset_dir FOLDER`` runs ``inference.json`` on a folder under Python's
profiler and prints the modules of medcf in which a function ran, in the order in which they were first entered, and the
calls within medcf from the evaluator's iteration to the first step of the denoising loop.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Trace"]

ROOT = Path(__file__).parents[1] / "medcf"


class Trace:
    """Notes the modules of medcf that are entered, and the stack at the first call of ``denoise``."""

    def __init__(self) -> None:
        self.modules: dict[str, None] = {}
        self.calls: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note the call of a function, not the body of a module or a class; for ``sys.setprofile``."""
        code = frame.f_code
        if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED or not code.co_filename.startswith(str(ROOT)):
            return
        self.modules.setdefault(_module(frame))
        if code.co_name == "denoise" and not self.calls:
            stack = []
            caller: FrameType | None = frame
            while caller is not None:
                if caller.f_code.co_filename.startswith(str(ROOT)):
                    stack.append(f"{_module(caller)}:{caller.f_code.co_qualname}")
                caller = caller.f_back
            names = [name.rsplit(":", 1)[1] for name in reversed(stack)]
            start = next((i for i, name in enumerate(names) if name.endswith("_iteration")), 0)
            self.calls = list(reversed(stack))[start:]


def _module(frame: FrameType) -> str:
    return str(Path(frame.f_code.co_filename).relative_to(ROOT))


def main() -> None:
    """Run the job of one folder and print its way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.road", description=__doc__)
    parser.add_argument("--bundle", default="diffice")
    parser.add_argument("--dataset_dir", required=True)
    options = parser.parse_args()
    from monai.bundle import ConfigWorkflow

    logging.disable(logging.INFO)
    config = ROOT.parent / "bundles" / options.bundle / "configs" / "inference.json"
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        overrides = {"dataset_dir": options.dataset_dir, "output_dir": folder, "progress": False, "amp": False}
        root = str(config.parents[1])
        sys.setprofile(trace)
        workflow = ConfigWorkflow(str(config), workflow_type="infer", bundle_root=root, **overrides)
        workflow.initialize()
        workflow.run()
        sys.setprofile(None)
    sys.stdout.write(f"{len(trace.modules)} modules of medcf entered:\n  " + "\n  ".join(trace.modules) + "\n")
    sys.stdout.write(f"{len(trace.calls)} calls down to the loop:\n  " + "\n  ".join(trace.calls) + "\n")


if __name__ == "__main__":
    main()
