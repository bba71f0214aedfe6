# SPDX-License-Identifier: Apache-2.0
"""MONAI's evaluator around an explainer: handlers, metrics and any data loader attach as usual."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch.utils.data import DataLoader

from medcf.inference.case_result import CaseResult
from medcf.inference.cases import case_bar, split_batch
from medcf.inference.explainer import Explainer
from medcf.inference.run_folder import RunFolder
from medcf.runtime.errors import Failure
from medcf.runtime.ranks import rank

__all__ = ["CaseWriter", "CounterfactualEvaluator"]


class CounterfactualEvaluator(SupervisedEvaluator):
    """Drives an `Explainer` over the batches of a loader.

    After an iteration ``state.batch`` and ``state.output`` are lists with one dictionary a case. The output holds
    ``image`` and ``pred`` (C, *grid) in [-1, 1], ``label`` where the loader gives one, and ``result``, the
    `CaseResult`. A case that fails is left out of both lists and put into ``state.failures``; the others of its batch
    are done all the same. A target that the classifier does not know ends the run, for it would fail every case.

    Args:
        explainer: explains the cases.
        val_data_loader: yields batches of `medcf.inference.cases.collate_cases`, or of any MONAI data loader whose
            items went through the explainer's preprocessing.
        val_handlers: Ignite handlers.
        key_val_metric: as MONAI's evaluator takes it.
        additional_metrics: as MONAI's evaluator takes them.
        metric_cmp_fn: tells whether a value of the key metric is better than another.
    """

    def __init__(
        self,
        explainer: Explainer,
        val_data_loader: DataLoader,
        *,
        val_handlers: Sequence[Any] | None = None,
        key_val_metric: dict[str, Metric] | None = None,
        additional_metrics: dict[str, Metric] | None = None,
        metric_cmp_fn: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        self.explainer = explainer
        if rank() > 0 and hasattr(explainer.inferer, "progress"):
            explainer.inferer.progress = False  # the bar of the main process stands for all
        options: dict[str, Any] = {} if metric_cmp_fn is None else {"metric_cmp_fn": metric_cmp_fn}
        super().__init__(
            device=torch.device(explainer.device),
            val_data_loader=val_data_loader,
            network=explainer.network,
            inferer=explainer.inferer,
            val_handlers=val_handlers,
            key_val_metric=key_val_metric,
            additional_metrics=additional_metrics,
            decollate=False,
            amp=False,  # the explainer opens autocast on the device's own type, where MONAI's amp knows only CUDA
            **options,
        )

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]  # as MONAI's
        """Explain all cases of the loader; does nothing when there is none."""
        self.state.failures = []
        if not len(self.data_loader):  # type: ignore[arg-type]
            return
        with case_bar(self.data_loader, show=getattr(self.explainer.inferer, "progress", True)) as bar:  # type: ignore[arg-type]

            def count(engine: Any) -> None:
                bar.update(len(engine.state.output) + len(engine.state.failures))

            with self.add_event_handler(Events.ITERATION_COMPLETED, count):
                super().run(global_epoch)

    def _iteration(  # type: ignore[override]  # a list of cases, as MONAI's own decollation makes
        self, engine: SupervisedEvaluator, batchdata: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Explain one batch."""
        items = split_batch(batchdata)
        results = self.explainer.batch(items)
        pairs = [(item, result) for item, result in zip(items, results, strict=True) if isinstance(result, CaseResult)]
        engine.state.failures = [result for result in results if isinstance(result, Failure)]
        engine.state.batch = [item for item, _ in pairs]
        engine.state.output = [
            {key: item[key] for key in (CommonKeys.LABEL,) if key in item} | result.on_grid | {"result": result}
            for item, result in pairs
        ]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class CaseWriter:
    """Writes every case of `CounterfactualEvaluator` into the run's folder, and notes those that failed.

    Args:
        run_folder: the run's output folder, opened.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the cases of an iteration; those that an interrupted session finished stay as they are."""
        state: Any = engine.state
        for result in (*state.failures, *(output["result"] for output in state.output)):
            self.run_folder.take(result)
