# SPDX-License-Identifier: Apache-2.0
"""A denoiser that onnxruntime computes, in the place of the network that it was exported from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medcf.networks.export.signature import Signature, complete
from medcf.runtime.weights import weights_sha256

__all__ = ["RECORD", "OnnxNetwork", "open_session"]

#: Key of the ONNX metadata that holds the SHA-256 of the weights.
RECORD = "weights_sha256"


class OnnxNetwork(nn.Module):
    """The prediction of a network, computed by onnxruntime on the CPU in float32.

    Everything else (classes, text encoder, sizes) is the network's, which it stands for: ``unwrap`` finds it, as inside
    ``DistributedDataParallel``. It has no parameters, records no gradients, and shows no attention.

    Args:
        path: file of `medcf.networks.export.export_network`.
        network: the network that it was exported from, with the same weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if onnxruntime is not installed.
        ValueError: if the file is no ONNX, or was exported from other weights.
    """

    def __init__(self, path: str | Path, network: nn.Module) -> None:
        super().__init__()
        self.path = Path(path)
        vars(self)["module"] = network  # not a submodule: nothing here trains, moves or injects into it
        self.signature = Signature.of(network)
        if not self.path.is_file():
            raise FileNotFoundError(f"The exported network {path} does not exist.")
        self._session: Any = open_session(self.path)
        known = self._session.get_modelmeta().custom_metadata_map.get(RECORD)
        if known != weights_sha256(network):
            source = "records no weights" if known is None else "was exported from other weights"
            raise ValueError(f"{path} {source} than those of {type(network).__name__} here: export it again.")

    def __getattr__(self, name: str) -> Any:
        """Look up what this module does not have in the network."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "module" not in vars(self):
                raise
            return getattr(vars(self)["module"], name)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the session, which another process opens itself."""
        return {**vars(self), "_session": None}

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Predict what the network predicts.

        Args:
            x: (B, C, *spatial), each side a multiple of the network's divisor.
            timesteps: (B,) integers; None means 0.
            context: embedded prompts (B, tokens, features); None means no prompt.
            class_labels: (B,) integers; None means the null class.

        Returns:
            Prediction (B, out_channels, *spatial) in the type of x, on its device.

        Raises:
            RuntimeError: if a gradient is to be recorded.
            ValueError: if an argument does not fit the network.
        """
        given = [each for each in (x, context) if each is not None]
        if torch.is_grad_enabled() and any(each.requires_grad for each in given):
            raise RuntimeError(
                "onnxruntime computes no gradients, and this method differentiates the network: leave "
                "backend='onnxruntime' away (--backend eager)."
            )
        own = self.signature
        if x.ndim != own.spatial_dims + 2 or any(side % own.divisor for side in x.shape[2:]):
            raise ValueError(
                f"x of shape {tuple(x.shape)}: the network takes {own.spatial_dims} spatial dimensions, each side a "
                f"multiple of {own.divisor}."
            )
        values = complete(
            x, timesteps, context, class_labels, own.null_context, own.features is not None, own.num_classes or 0
        )
        arguments = dict(zip(("x", "timesteps", "context", "class_labels"), values, strict=True))
        arguments = {name: arguments[name].detach().as_subclass(Tensor).cpu() for name in own.names()}
        arguments = {name: value.float() if value.is_floating_point() else value for name, value in arguments.items()}
        if self._session is None:
            self._session = open_session(self.path)
        (found,) = self._session.run(None, {name: value.numpy() for name, value in arguments.items()})
        return torch.from_numpy(found).to(x.device, x.dtype)


def open_session(source: Path | bytes | None) -> Any:
    """Open an ONNX file, or its content, with as many threads as torch has.

    Args:
        source: None only checks that ONNX can be written and run.

    Raises:
        ImportError: if it cannot.
        ValueError: if the source is no ONNX.
    """
    try:
        import onnxruntime

        if source is None:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            f"ONNX needs {error.name}, which is not installed: python -m pip install 'medcf[onnx]', or '.[onnx]' in a "
            "clone."
        ) from error
    if source is None:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    content = source if isinstance(source, bytes) else str(source)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of onnxruntime's own classes, without a common base
        name = "The model" if isinstance(source, bytes) else source
        raise ValueError(f"{name} is not an ONNX file that onnxruntime reads: {str(error)[:200]}") from error
