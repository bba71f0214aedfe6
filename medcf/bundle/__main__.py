# SPDX-License-Identifier: Apache-2.0
"""Check bundles, ``python -m medcf.bundle bundles/*/``; or export one: ``python -m medcf.bundle export --help``."""

from __future__ import annotations

import argparse
import sys

from medcf.bundle import export
from medcf.bundle.verify import verify_bundle


def main() -> int:
    """Check all named bundles and return the number that fail; or export one and return whether that failed."""
    if sys.argv[1:2] == ["export"]:
        return export.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m medcf.bundle", description=__doc__)
    parser.add_argument("bundles", nargs="+", help="bundle folders")
    failed = 0
    for bundle in parser.parse_args().bundles:
        problems = verify_bundle(bundle)
        failed += bool(problems)
        sys.stdout.write(f"{bundle}: {'ok' if not problems else ''}\n" + "".join(f"  {line}\n" for line in problems))
    return failed


if __name__ == "__main__":
    sys.exit(main())
