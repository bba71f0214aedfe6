# SPDX-License-Identifier: Apache-2.0
"""Decodes the pixel data of DICOM files with the installed pydicom plugins.

Uncompressed data are read in this process. Compressed data are decoded in a worker process (`decode_worker`), because
native decoders abort on some damaged data, and hang or request unlimited memory on others. The worker lives as long as
this process and is restarted when it dies.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medcf.runtime.errors import UnreadableImage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["decode_frame"]

MEMORY_LIMIT = 2**31  # bytes, for the worker process
TIME_LIMIT = 60.0  # seconds per frame

_PLUGIN_OF = {
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.90": "pillow",
    "1.2.840.10008.1.2.4.91": "pillow",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}


def decode_frame(path: Path, dataset: Dataset, frame: int) -> NDArray[np.generic]:
    """Decode one frame to its stored values (H, W) or (H, W, 3); YBR becomes RGB.

    Args:
        path: the file.
        dataset: its header, from `medcf.data.dicom.header.open_dicom`.
        frame: index, from 0.

    Raises:
        UnreadableImage: if the pixel data are damaged or need a decoder that is not installed.
    """
    from pydicom.pixels import pixel_array
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # without file meta information, infer the uncompressed syntax from the element encoding
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    try:
        if syntax.is_transfer_syntax and not syntax.is_private and syntax.is_compressed:
            fill = {k: dataset.get(k) for k in ("BitsStored", "PixelRepresentation", "SamplesPerPixel")}
            array = _DECODER.decode(path, {"path": str(path.absolute()), "index": frame, "fill": fill}, syntax)
        else:
            array = pixel_array(dataset, index=frame)
    except UnreadableImage:
        raise
    except Exception as error:
        raise _damaged(path, type(error).__name__) from error
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        shape = " x ".join(map(str, array.shape))
        raise UnreadableImage(path, f"is not a 2D image (one frame is {shape})", "Give a 2D image.")
    return array


class _Decoder:
    """The decoding process; forked workers start their own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def decode(self, path: Path, request: dict[str, Any], syntax: Any) -> NDArray[np.generic]:
        """Send a request and wait for its answer.

        Raises:
            UnreadableImage: if the frame cannot be decoded, or decoding it killed the process.
        """
        with self._lock:
            process = self._running()
            timer = threading.Timer(TIME_LIMIT, process.kill)
            timer.start()
            try:
                header, body = self._ask(process, request)
            except (OSError, ValueError, EOFError):  # the process is gone, possibly in the middle of an answer
                code = self.stop()
                slow = code == -signal.SIGKILL and not timer.is_alive()
                what = f"took more than {TIME_LIMIT:g} s" if slow else "crashed its decoder"
                raise UnreadableImage(
                    path, f"cannot be decoded: damaged pixel data ({what})", "Export it again."
                ) from None
            finally:
                timer.cancel()
        if "error" in header:
            if header["unsupported"]:
                raise _unsupported(path, syntax)
            raise _damaged(path, header["error"])
        return np.frombuffer(body, np.dtype(header["dtype"])).reshape(header["shape"]).copy()

    def stop(self) -> int:
        """End the process and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        return process.wait()

    def forget(self) -> None:
        """After a fork, leave the process to the parent that owns it."""
        self.__init__()  # type: ignore[misc]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            script = str(Path(__file__).with_name("decode_worker.py"))
            self._process = subprocess.Popen(
                [sys.executable, "-P", script, str(MEMORY_LIMIT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    @staticmethod
    def _ask(process: subprocess.Popen[bytes], request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        header = json.loads(process.stdout.readline())
        length = 0 if "error" in header else int(np.prod(header["shape"])) * np.dtype(header["dtype"]).itemsize
        body = process.stdout.read(length)
        if len(body) < length:
            raise EOFError
        return header, body


_DECODER = _Decoder()
atexit.register(_DECODER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_DECODER.forget)


def _damaged(path: Path, error: str) -> UnreadableImage:
    reason = f"cannot be decoded: truncated or damaged pixel data ({error})"
    return UnreadableImage(path, reason, "Export it again.")


def _unsupported(path: Path, syntax: Any) -> UnreadableImage:
    plugin = _PLUGIN_OF.get(str(syntax))
    if plugin:
        reason = f"is compressed with {syntax.name}, which no installed decoder reads"
        return UnreadableImage(path, reason, f"Run: python -m pip install {plugin}")
    reason = f"is compressed with {syntax.name}, which cannot be decoded here"
    return UnreadableImage(path, reason, "Export it uncompressed.")
