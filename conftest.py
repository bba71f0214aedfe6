# SPDX-License-Identifier: Apache-2.0
"""Leaves out, where MONAI Deploy is not installed, the modules whose classes are its operators."""

from importlib.util import find_spec

collect_ignore: list[str] = []
if find_spec("holoscan") is None:
    collect_ignore += ["medcf/deploy/operators.py", "medcf/deploy/application.py"]
