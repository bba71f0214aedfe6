# SPDX-License-Identifier: Apache-2.0
"""Run a bundle as an application, or package it: ``python -m medcf.deploy --bundle diffice -i IN -o OUT``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from medcf.deploy.sdk import quiet_sdk

quiet_sdk()  # before the others import MONAI

from medcf.deploy.outcome import write_error  # noqa: E402
from medcf.deploy.settings import bundle_path, configured, open_explainer  # noqa: E402
from medcf.runtime.error_report import root_cause  # noqa: E402

logger = logging.getLogger("medcf.deploy")

# an orchestrator's name for a folder goes before that which an image has set for itself
_INPUTS = ("MERCURE_IN_DIR", "MONAI_INPUTPATH", "HOLOSCAN_INPUT_PATH")
_OUTPUTS = ("MERCURE_OUT_DIR", "MONAI_OUTPUTPATH", "HOLOSCAN_OUTPUT_PATH")
_MODELS = ("HOLOSCAN_MODEL_PATH", "MONAI_MODELPATH")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["package"]:
        return _package(words[1:])
    return _run(words)


def _run(words: list[str]) -> int:
    """Explain a folder; 1 if anything failed, with everything else written."""
    parser = argparse.ArgumentParser(prog="python -m medcf.deploy", description=__doc__)
    parser.add_argument("-i", "--input", default=_first(_INPUTS, "input"), help=f"folder of images; or {_INPUTS}")
    parser.add_argument("-o", "--output", default=_first(_OUTPUTS, "output"), help=f"folder of results; or {_OUTPUTS}")
    parser.add_argument("-m", "--model", default=_first(_MODELS), help=f"folder of bundles; or {_MODELS}")
    parser.add_argument("--bundle", help="name or folder of the bundle; or MEDCF_BUNDLE")
    parser.add_argument("--config", default=_first(("HOLOSCAN_CONFIG_PATH",)), help="app.yaml; or HOLOSCAN_CONFIG_PATH")
    parser.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="ID=VALUE", help="option of the bundle"
    )
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it names each module that it copies
    title, output = "medcf", Path(given.output)
    try:
        bundle, settings = configured(
            given.config, os.environ, Path(given.input), {"bundle": given.bundle, **dict(given.set)}
        )
        folder = bundle_path(bundle, given.model)
        title = f"medcf {folder.name}"
        explainer = open_explainer(folder.resolve(), **settings)
        from medcf.deploy.application import CounterfactualApplication  # only here: it needs the SDK

        app = CounterfactualApplication(explainer, given.input, output, title)
        app.run()
    except Exception as error:
        cause = root_cause(error)
        text = f"{type(cause).__name__}: {cause}"
        logger.debug("the application failed", exc_info=error)
        logger.error("%s", text)
        write_error(output, title, text)
        return 1
    return 1 if app.outcome.failed else 0


def _package(words: list[str]) -> int:
    from medcf.deploy.package import write_package

    parser = argparse.ArgumentParser(prog="python -m medcf.deploy package", description=write_package.__doc__)
    parser.add_argument("--bundle", required=True, help="name or folder of the bundle")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--set", action="append", default=[], type=_setting, metavar="ID=VALUE", help="option")
    given = parser.parse_args(words)
    folder = write_package(given.bundle, given.output, dict(given.set))
    sys.stdout.write(f"docker build --tag {Path(given.bundle).name} {folder}\n")
    return 0


def _first(names: tuple[str, ...], default: str | None = None) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), default)


def _setting(text: str) -> tuple[str, Any]:
    """Parse ``id=value``: JSON, or text that is not."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: give ID=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
