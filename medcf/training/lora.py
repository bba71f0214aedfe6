# SPDX-License-Identifier: Apache-2.0
"""The end of an adapter's training: its file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events

from medcf.networks.lora import Adapters
from medcf.runtime.subjects import write_subjects
from medcf.runtime.weights import write_class_names

__all__ = ["ExportAdapter"]

logger = logging.getLogger(__name__)


class ExportAdapter:
    """Write the adapter alone when the training is complete, as `medcf.training.state.ExportWeights` writes a network.

    Args:
        adapters: the adapters of the network.
        path: safetensors file to write.
        name: which adapter.
        dtype: floating-point type of the file, such as ``"float16"``; None keeps the adapter's.
        class_names: names of the user's classes, stored next to the adapter; None for phantoms.
        subjects: hashed names of whom the adapter is trained on, see `medcf.training.state.ExportWeights`.

    Raises:
        ValueError: if the folder holds weights for other classes.
    """

    def __init__(
        self,
        adapters: Adapters,
        path: str | Path,
        name: str = "adapter",
        dtype: str | None = None,
        class_names: Sequence[str] | None = None,
        subjects: Sequence[str] | None = None,
    ) -> None:
        self.adapters, self.path, self.name, self.dtype = adapters, Path(path), name, dtype
        self.subjects = subjects
        if class_names is not None and idist.get_rank() == 0:
            write_class_names(self.path.parent, class_names)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file, on the main process."""
        if idist.get_rank() == 0:
            write_subjects(self.path, self.subjects)
            self.adapters.save(self.path, self.name, self.dtype)
            logger.info("Wrote the adapter of iteration %d to %s.", engine.state.iteration, self.path)
