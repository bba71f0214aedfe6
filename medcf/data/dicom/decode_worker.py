# SPDX-License-Identifier: Apache-2.0
"""Decodes compressed pixel data in a separate process, so that an aborting native decoder does not end the run.

`medcf.data.dicom.decoder` runs this file by its path; it imports only pydicom and NumPy. A request is a line of JSON
(``path``, ``index``, ``fill``: attributes missing from the header); the answer is a line of JSON followed by the array.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def decode(path: str, index: int, fill: dict[str, Any]) -> np.ndarray:
    """Decode one frame to its stored values (H, W) or (H, W, 3); YBR becomes RGB."""
    # import only after the limits are set and stdout is redirected, because native decoders print
    import numpy as np
    import pydicom
    from pydicom.pixels import pixel_array

    dataset = pydicom.dcmread(path, force=True, defer_size=1024)
    for keyword, value in fill.items():
        setattr(dataset, keyword, value)
    # the J2K decoders undo the reversible and irreversible color transforms themselves
    return np.ascontiguousarray(pixel_array(dataset, index=index))


def main() -> None:
    """Answer requests until the input ends."""
    with contextlib.suppress(ImportError):  # not available on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin.buffer:
        try:
            array = decode(**json.loads(line))
            header: dict[str, Any] = {"shape": array.shape, "dtype": array.dtype.str}
            body = array.tobytes()
        except Exception as error:
            text = str(error).lower()
            unsupported = "missing dependencies" in text or "is not supported" in text
            header = {
                "error": type(error).__name__,
                "unsupported": unsupported or isinstance(error, NotImplementedError),
            }
            body = b""
        answers.write(json.dumps(header).encode() + b"\n" + body)
        answers.flush()


if __name__ == "__main__":
    main()
