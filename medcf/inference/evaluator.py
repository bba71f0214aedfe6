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
from medcf.inferers.options import option_of, with_options
from medcf.runtime.errors import Failure
from medcf.runtime.ranks import rank

__all__ = ["CaseWriter", "CounterfactualEvaluator"]


class CounterfactualEvaluator(SupervisedEvaluator):
    """Run an `Explainer` over the batches of a loader.

    After an iteration ``state.batch`` and ``state.output`` are lists with one dictionary per case. The output holds
    ``image`` and ``pred`` (C, *grid) in [-1, 1], ``label`` if the loader provides one, and ``result``, the
    `CaseResult`. A case that fails is left out of both lists and added to ``state.failures``; the rest of its batch is
    still processed. A target that the classifier does not have ends the run, because it would fail every case.

    Args:
        explainer: explains the cases.
        val_data_loader: yields batches from `medcf.inference.cases.collate_cases`, or from any MONAI data loader whose
            items went through the explainer's preprocessing.
        val_handlers: Ignite handlers.
        key_val_metric: see MONAI's evaluator.
        additional_metrics: see MONAI's evaluator.
        metric_cmp_fn: tells whether one value of the key metric is better than another.
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
        if rank() > 0 and option_of(explainer.inferer, "progress"):
            explainer.inferer = with_options(explainer.inferer, progress=False)  # the main process shows the only bar
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
            amp=False,  # the explainer uses autocast for any device; MONAI's amp supports only CUDA
            **options,
        )

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]  # same signature as MONAI's
        """Explain all cases of the loader; does nothing if there are none."""
        self.state.failures = []
        if not len(self.data_loader):  # type: ignore[arg-type]
            return
        with case_bar(self.data_loader, show=option_of(self.explainer.inferer, "progress", True)) as bar:  # type: ignore[arg-type]

            def count(engine: Any) -> None:
                bar.update(len(engine.state.output) + len(engine.state.failures))

            with self.add_event_handler(Events.ITERATION_COMPLETED, count):
                super().run(global_epoch)

    def _iteration(  # type: ignore[override]  # a list of cases, as from MONAI's own decollation
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
    """Write every case of `CounterfactualEvaluator` to the run's folder, and record failures.

    Args:
        run_folder: the run's output folder, already open.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the cases of an iteration; cases finished by an interrupted session are kept."""
        state: Any = engine.state
        for result in (*state.failures, *(output["result"] for output in state.output)):
            self.run_folder.take(result)
