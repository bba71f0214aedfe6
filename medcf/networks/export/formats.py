# SPDX-License-Identifier: Apache-2.0
"""Writes a denoiser as TorchScript, as ``torch.export`` program or as ONNX, and compares the file with the network."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medcf.networks.export.onnx_network import RECORD, open_session
from medcf.networks.export.signature import Completed, Signature
from medcf.runtime.atomic import replace_file
from medcf.runtime.choices import check_choice
from medcf.runtime.frozen import frozen
from medcf.runtime.weights import weights_sha256

__all__ = ["RECORD_FILE", "SUFFIXES", "TOLERANCE", "Format", "export_network"]

Format = Literal["torchscript", "exported", "onnx"]

SUFFIXES: dict[str, str] = {"torchscript": ".ts", "exported": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-5  # of the largest value of a prediction, at least 1
RECORD_FILE = "export.json"
_SIDES = (2, 3, 4)  # unequal, so that no side is taken for another, and above 1, which torch.export would fix
_CHECKS = ((1, (2, 4, 3)), (3, (3, 2, 2)))  # other batches and sizes than the one it is made with
_MOST = 4096  # rows, tokens, and multiples of the divisor on a side: torch.export takes an upper end
_LIMIT = 2**31 - 2**20  # bytes of an ONNX file


def export_network(
    network: nn.Module,
    path: str | Path,
    format: Format,
    *,
    record: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> float:
    """Write a denoiser for another runtime, for any batch and any sides that are multiples of its divisor.

    The file is written only if it predicts what the network predicts, for other batches and sizes than the one that it
    was made with. It takes x, timesteps, context and class_labels, in this order:

    - "torchscript": by position or name; all but x may be left out, as for `medcf.networks.BundleUNet`.
    - "exported": all four by position, with None for what the network does not read; each side at least twice the
      divisor.
    - "onnx": those that it reads, by name; the output is ``prediction``.

    Args:
        network: on the CPU, with its weights, in float32.
        path: file to write.
        format: of the file.
        record: what to record beside the SHA-256 of the weights: as metadata in ONNX, else in ``export.json``.
        files: text by name to put into the file, as MONAI's ``ckpt_export`` does; not into ONNX.

    Returns:
        The largest difference between the predictions of the file and of the network.

    Raises:
        ImportError: if ONNX is asked for and not installed.
        ValueError: if the network cannot be exported, or the file predicts something else.
    """
    check_choice("format", format, Format)
    signature = Signature.of(network)
    record = {RECORD: weights_sha256(network), **(record or {})}
    kept = {**(files or {}), RECORD_FILE: json.dumps(record)}
    with frozen(network), torch.no_grad(), _quiet():
        positional = _Positional(network, signature).eval()
        try:
            content, predict = _MAKERS[format](positional, signature, record, kept)
        except ImportError:
            raise
        except Exception as error:
            other = "torchscript" if format != "torchscript" else "exported"
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{type(network).__name__} cannot be exported as {format!r}: {reason} Try {other!r}, which is made in "
                "another way, or leave out the option that needs it."
            ) from error
        worst = _compare(positional, predict, signature, format)
    replace_file(path, lambda file: file.write(content), binary=True)
    return worst


class _Positional(nn.Module):
    """A network as the exporters call it: four arguments, of which it passes on those that it reads."""

    def __init__(self, network: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.network = network
        self.names = signature.names()[2:]

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None, class_labels: Tensor | None) -> Tensor:
        given = {"context": context, "class_labels": class_labels}
        read = {name: given[name] for name in self.names}
        prediction: Tensor = self.network(x, timesteps=timesteps, **read)
        return prediction


Predict = Callable[[dict[str, Tensor]], Tensor]
Made = tuple[bytes, Predict]


def _torchscript(network: nn.Module, signature: Signature, record: dict[str, str], files: dict[str, str]) -> Made:
    """Trace the network, because ``torch.jit.script`` fails on MONAI's, and script only what completes arguments."""
    example = signature.example(2, _SIDES[: signature.spatial_dims])
    stand_in = {"context": torch.zeros(2, 1, 1), "class_labels": torch.zeros(2, dtype=torch.long)}
    traced = torch.jit.trace(network, _ordered({**stand_in, **example}), check_trace=False)
    module = torch.jit.script(Completed(traced, signature).eval())
    buffer = io.BytesIO()
    torch.jit.save(module, buffer, _extra_files={name: text.encode() for name, text in files.items()})
    loaded = torch.jit.load(io.BytesIO(buffer.getvalue()), map_location="cpu")
    return buffer.getvalue(), lambda given: loaded(**given)


def _exported(network: nn.Module, signature: Signature, record: dict[str, str], files: dict[str, str]) -> Made:
    buffer = io.BytesIO()
    torch.export.save(_program(network, signature), buffer, extra_files=files)
    loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), lambda given: loaded(*_ordered(given))


def _onnx(network: nn.Module, signature: Signature, record: dict[str, str], files: dict[str, str]) -> Made:
    open_session(None)  # says what to install before the work
    size = sum(value.numel() * 4 for value in network.state_dict().values())
    if size > _LIMIT:
        raise ValueError(f"its weights take {size / 1e9:.1f} GB, and an ONNX file holds less than 2 GB.")
    made = torch.onnx.export(
        _program(network, signature), dynamo=True, external_data=False, verbose=False, output_names=["prediction"]
    )
    if made is None:
        raise ValueError("torch.onnx.export returned no program.")
    model = made.model_proto
    for name, value in record.items():
        model.metadata_props.add(key=name, value=value)
    content = model.SerializeToString()
    session = open_session(content)

    def predict(given: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in given.items()})[0])

    return content, predict


_MAKERS: dict[str, Callable[[nn.Module, Signature, dict[str, str], dict[str, str]], Made]] = {
    "torchscript": _torchscript,
    "exported": _exported,
    "onnx": _onnx,
}


def _program(network: nn.Module, signature: Signature) -> Any:
    """Return the program of the network with a free batch, number of tokens and sides."""
    dim = torch.export.Dim
    rows = dim("batch", min=1, max=_MOST)
    sides = {
        axis + 2: signature.divisor * dim(f"side_{axis}", min=2, max=_MOST) for axis in range(signature.spatial_dims)
    }
    shapes: dict[str, Any] = {"x": {0: rows, **sides}, "timesteps": {0: rows}}
    shapes["context"] = None if signature.features is None else {0: rows, 1: dim("tokens", min=1, max=_MOST)}
    shapes["class_labels"] = None if signature.num_classes is None else {0: rows}
    example = signature.example(2, _SIDES[: signature.spatial_dims])
    return torch.export.export(network, _ordered(example), dynamic_shapes=shapes)


def _ordered(given: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """Return arguments by position, None for what is not given."""
    return tuple(given.get(name) for name in ("x", "timesteps", "context", "class_labels"))


def _compare(network: nn.Module, predict: Predict, signature: Signature, format: str) -> float:
    """Return the largest difference from the network; refuse one that is more than rounding."""
    worst = 0.0
    for seed, (batch, sides) in enumerate(_CHECKS):
        given = signature.example(batch, sides[: signature.spatial_dims], seed)
        expected, found = network(*_ordered(given)), predict(given)
        difference = float((found - expected).abs().max())
        worst = max(worst, difference)
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ValueError(
                f"The {format!r} export predicts something else than the network, by up to {difference:.2g} for x of "
                f"shape {tuple(given['x'].shape)}: nothing was written. Its forward may depend on values or on sizes "
                "in a way that the exporter cannot record; report it with the network's class."
            )
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' remarks: torch calls its own TorchScript deprecated, and onnxscript logs each rewrite."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
