# SPDX-License-Identifier: Apache-2.0
"""MONAI's evaluator for methods that explain: keeps the path, the confidences and the cost beside the prediction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_dst_type
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medcf.inference.run_folder import Failure
from medcf.inferers.checks import TargetError
from medcf.inferers.counterfactual import Counterfactual
from medcf.runtime.performance import autocast
from medcf.runtime.ranks import rank

__all__ = ["CounterfactualEvaluator"]

logger = logging.getLogger(__name__)


class CounterfactualEvaluator(SupervisedEvaluator):
    """Calls ``inferer.explain`` on batches of cases; MONAI's handlers and postprocessing attach as usual.

    After an iteration ``state.batch`` and ``state.output`` are lists with one dictionary a case. The output holds
    ``image`` and ``pred`` (C, *spatial), ``trajectory`` (L + 1, C, *spatial), ``confidences`` (L + 1 probabilities of
    the target), ``label_before``, ``label_after``, ``target``, ``flipped``, ``unchanged``, ``scale``, ``iterations``,
    ``num_function_evaluations``, ``seconds``, and where the method has figures of its own, ``extras`` (by name); with a
    segmenter ``segmentation`` (2, *spatial) of input and counterfactual, with a novelty detector its scores. A case
    that cannot be explained, or whose result is not finite, is left out of both lists and put into
    ``state.failures``; the others of its batch are done all the same. A target that the classifier does not know ends
    the run, for it would fail every case.

    Args:
        device: where to compute.
        val_data_loader: yields batches of `medcf.inference.cases.collate_cases`.
        network: the denoising network.
        inferer: a method with ``explain(inputs, network, sample_ids=...)``.
        classifier: the explained classifier, images to logits.
        segmenter: images to logits of structures; for the report.
        novelty: images to a dictionary of tensors (B,); `medcf.metrics.NoveltyDetector`.
        postprocessing: applied to each case's dictionary.
        val_handlers: Ignite handlers.
        amp: compute in 16 bits, always or where the device has them ("auto"), see `medcf.runtime.performance.autocast`.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: DataLoader,
        network: nn.Module,
        inferer: Any,
        classifier: Callable[[Tensor], Tensor],
        *,
        segmenter: Callable[[Tensor], Tensor] | None = None,
        novelty: Callable[[Tensor], dict[str, Tensor]] | None = None,
        postprocessing: Callable[[Any], Any] | None = None,
        val_handlers: Sequence[Any] | None = None,
        amp: bool | Literal["auto"] = False,
    ) -> None:
        self.method = inferer
        self.classifier = classifier
        self.segmenter = segmenter
        self.novelty = novelty
        self.use_autocast = amp
        if rank() > 0 and hasattr(inferer, "progress"):
            inferer.progress = False  # the bar of the main process stands for all
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            network=network,
            inferer=inferer,
            postprocessing=postprocessing,  # type: ignore[arg-type]  # any callable will do
            val_handlers=val_handlers,
            decollate=False,
            # explain() opens autocast on the device's own type, where MONAI's amp knows only CUDA
            amp=False,
        )

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]  # as MONAI's
        """Explain all cases of the loader; does nothing when there is none."""
        self.state.failures = []
        if len(self.data_loader):  # type: ignore[arg-type]
            super().run(global_epoch)

    def _iteration(  # type: ignore[override]  # a list of cases, as MONAI's own decollation makes
        self, engine: SupervisedEvaluator, batchdata: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Explain one batch."""
        failures: list[Failure] = list(batchdata["failures"])
        items = batchdata["items"]
        outputs: list[dict[str, Any] | Failure] = self._explain_all(items, batchdata["image"]) if items else []
        engine.state.batch = []
        results = []
        for item, output in zip(items, outputs, strict=True):
            if isinstance(output, Failure):
                failures.append(output)
            else:
                engine.state.batch.append(item)
                results.append(output)
        engine.state.failures = failures
        engine.state.output = results
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _explain_all(self, items: list[dict[str, Any]], image: Tensor) -> list[dict[str, Any] | Failure]:
        """Explain a batch; when that raises, each of its cases alone, so that one cannot stop the others."""
        try:
            return self._explain(items, image)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"Out of memory with {len(items)} images at once; use a smaller --batch_size or --device cpu."
            ) from error
        except TargetError:
            raise
        except (ValueError, RuntimeError) as error:
            if len(items) == 1:
                first_line = (str(error).splitlines() or [type(error).__name__])[0]
                remedy = "Check the image; report it if it is fine."
                return [Failure(items[0]["file"], "infer", first_line[:300], remedy)]
            logger.warning("A batch of %d failed (%s); trying its cases one by one.", len(items), error)
            return [self._explain_all([item], image[index : index + 1])[0] for index, item in enumerate(items)]

    @torch.no_grad()
    def _explain(self, items: list[dict[str, Any]], image: Tensor) -> list[dict[str, Any] | Failure]:
        started = time.perf_counter()
        image = image.to(self.state.device)
        cases = [item["case"] for item in items]
        with (
            self.mode(self.network),
            autocast(self.state.device, enabled=self.use_autocast),
        ):
            result = self.method.explain(image, self.network, sample_ids=cases)
        pred = result.image.as_subclass(Tensor).float()
        columns = self._columns(image, pred, result)
        seconds = (time.perf_counter() - started) / len(items)
        outputs: list[dict[str, Any] | Failure] = []
        for index, item in enumerate(items):
            if not bool(torch.isfinite(result.trajectory[index]).all()):
                remedy = "Lower classifier_scales, or give --amp False."
                outputs.append(Failure(item["file"], "infer", "the counterfactual is not finite (NaN)", remedy))
                continue
            output = {name: values[index] for name, values in columns.items()}
            on_grid = item["image"]  # a MetaTensor: its geometry and history let postprocessing invert the prediction
            restored = convert_to_dst_type(pred[index], on_grid, device=torch.device("cpu"))[0]
            outputs.append({"image": on_grid, "pred": restored, **output, "seconds": seconds})
        return outputs

    def _columns(self, image: Tensor, pred: Tensor, result: Counterfactual) -> dict[str, Any]:
        """Everything that is known of a batch, each entry indexed by case."""
        columns: dict[str, Any] = {
            "trajectory": result.trajectory,
            "confidences": result.confidences.tolist(),
            "label_before": self.classifier(image).argmax(1).tolist(),
            "label_after": self.classifier(pred).argmax(1).tolist(),
            "target": result.target.tolist(),
            "flipped": result.flipped.tolist(),
            "unchanged": result.unchanged.tolist(),
            "scale": result.scale.tolist(),
            "iterations": result.iterations.tolist(),
            "num_function_evaluations": result.num_function_evaluations.tolist(),
        }
        if result.extras:
            columns["extras"] = [
                {name: float(values[index]) for name, values in result.extras.items()} for index in range(len(image))
            ]
        if self.segmenter is not None:
            labels = [self.segmenter(picture).argmax(1) for picture in (image, pred)]
            columns["segmentation"] = torch.stack(labels, dim=1).to(torch.uint8)
        if self.novelty is not None:
            columns["novelty"] = [
                dict(zip(scores, values, strict=True))
                for scores in [self.novelty(image)]
                for values in zip(*(score.tolist() for score in scores.values()), strict=True)
            ]
        return columns
