# SPDX-License-Identifier: Apache-2.0
"""The path of every image as one Python object: read, grid, explain, back, write."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from medcf.data import Case
from medcf.data.case import as_case
from medcf.data.image import channels_first, digest
from medcf.inference.attribution import Attribution
from medcf.inference.case_result import CaseResult, Writer
from medcf.inference.cases import case_bar, case_loader, prepare_case
from medcf.inference.inputs import list_cases
from medcf.inference.results import case_result
from medcf.inference.run_folder import RunFolder
from medcf.inference.summary import end_run
from medcf.inferers import explain_seeds, with_explain
from medcf.inferers.checks import TargetError, class_index
from medcf.inferers.options import option_of
from medcf.runtime.errors import Failure, UnreadableImage
from medcf.runtime.frozen import frozen
from medcf.runtime.performance import autocast

__all__ = ["Explainer"]

logger = logging.getLogger(__name__)

Source = Case | str | PathLike[str] | Sequence[str | PathLike[str]] | Tensor | np.ndarray | Mapping[str, Any]


class Explainer:
    """Show how images would look if they belonged to another class.

    ``medcf.load("diffice")`` creates one from a bundle; a bundle's evaluator drives one; ten lines of Python build one
    from your own parts. It can be pickled, for example for a data loader's workers.

    Args:
        preprocessing: from ``{"image": path or Case, ...}`` to ``image`` (1, *grid) in [-1, 1], a MetaTensor with its
            `medcf.data.GridRecord`.
        inferer: the method, called as ``inferer(inputs, network)``; see `medcf.inferers.DerivedMethod`.
        network: the denoising network.
        postprocessing: from ``image`` and ``pred`` on the grid to ``pred`` and ``difference`` on the image's own
            matrix, see `medcf.transforms.AddDifferenced`.
        classifier: the explained classifier, images to logits.
        segmenter: images to logits of structures, for the report.
        novelty: images to a dictionary of tensors (B,); `medcf.metrics.NoveltyDetector`.
        attribution: makes the map of a finding inside an organ.
        writers: called by `CaseResult.save` and `run`.
        listing: options of `medcf.inference.list_cases` for `run`.
        class_names: names of the classes 0, 1, ..., by which a target may be given.
        seeds: number of noise seeds per image, the method's own first. Its counterfactual is the result; the spread
            over all seeds shows how much of it is chance.
        trajectory: map all iterates back to the image's own matrix; None does so only for pictures, because clinical
            volumes are large.
        device: device for the computation.
        amp: compute in 16 bits, always or if the device supports it ("auto"), see `medcf.runtime.performance.autocast`.
        batch_size: number of cases that `run` explains at once.
        num_workers: number of reader processes for `run`.
        manifest: what `RunFolder` records about a run: ``config``, ``weights``, ``seed``.
    """

    def __init__(
        self,
        preprocessing: Callable[[Any], Any],
        inferer: Any,
        network: nn.Module,
        postprocessing: Callable[[Any], Any],
        classifier: Callable[[Tensor], Tensor],
        *,
        segmenter: Callable[[Tensor], Tensor] | None = None,
        novelty: Callable[[Tensor], dict[str, Tensor]] | None = None,
        attribution: Attribution | None = None,
        writers: Sequence[Writer] = (),
        listing: Mapping[str, Any] | None = None,
        class_names: Sequence[str] = (),
        seeds: int = 1,
        trajectory: bool | None = None,
        device: torch.device | str = "cpu",
        amp: bool | Literal["auto"] = False,
        batch_size: int = 1,
        num_workers: int = 0,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        self.preprocessing = preprocessing
        self.inferer = with_explain(inferer, classifier)
        self.network = network
        self.postprocessing = postprocessing
        self.classifier = classifier
        self.segmenter = segmenter
        self.novelty = novelty
        self.attribution = attribution
        self.writers = writers
        self.listing = dict(listing or {})
        self.class_names = tuple(class_names)
        if seeds < 1 or seeds != int(seeds) or (seeds > 1 and option_of(inferer, "seed") is None):
            raise ValueError(f"seeds={seeds}: use 1, or a whole number of more with a method that has a seed.")
        self.seeds = int(seeds)
        self.trajectory = trajectory
        self.device = device
        self.amp = amp
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.manifest = dict(manifest or {})

    def __call__(self, case: Source, target: Any = None) -> CaseResult:
        """Explain one image.

        Args:
            case: a file, a folder with one DICOM series, its files, a `medcf.data.Case`, an image (C, X, Y[, Z]) from
                `medcf.read` or MONAI's loaders, or an item for the preprocessing.
            target: target class, by index or name; None uses the method's.

        Raises:
            UnreadableImage: if the image cannot be used; names the file and the remedy.
            RuntimeError: if it could not be explained.
        """
        (result,) = self.batch([case], target)
        if isinstance(result, Failure):
            if result.stage == "read":
                raise UnreadableImage(result.file, result.reason, result.remedy)
            raise RuntimeError(f"{Path(result.file).name}: {result.reason}. {result.remedy}")
        return result

    def batch(self, items: Sequence[Source | Failure], target: Any = None) -> list[CaseResult | Failure]:
        """Explain images together; one that fails does not stop the others.

        Args:
            items: as in `__call__`, prepared or not; a `Failure` is passed through.
            target: target class for all; None uses the method's.

        Returns:
            One result per item, in order.

        Raises:
            TargetError: if the classifier does not have the target, which would fail every image.
        """
        prepared = [item if isinstance(item, Failure) else self.prepare(item) for item in items]
        good = [item for item in prepared if not isinstance(item, Failure)]
        results = iter(self._explain_all(good, class_index(target, self.class_names)) if good else [])
        return [item if isinstance(item, Failure) else next(results) for item in prepared]

    def prepare(self, source: Source) -> dict[str, Any] | Failure:
        """Read an image and put it onto the grid, or explain why this fails.

        Returns:
            An item with ``image`` (1, *grid), ``case`` and ``file``.
        """
        item = dict(source) if isinstance(source, Mapping) else {"image": source}
        image: Any = item.get("image")
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(image)
        steps = self.preprocessing
        if isinstance(image, Case | str | PathLike | Sequence):
            image = case = as_case(image)
        elif isinstance(image, Tensor):
            meta = getattr(image, "meta", {})
            case = as_case(str(meta.get("filename_or_obj", "image")))
            if "grid_record" in meta:
                steps = Compose()
            else:
                image = channels_first(MetaTensor(image))
                image.meta.setdefault("sha256", digest(image.numpy()))
                if isinstance(steps, Compose):  # as MONAI Deploy does with an image in memory
                    steps = Compose([step for step in steps.transforms if "LoadImage" not in type(step).__name__])
        else:
            raise TypeError(f"an image is a path, a list of files, a Case or an array, not {type(image).__name__}")
        return prepare_case(case, {**item, "image": image}, steps)

    def run(
        self,
        folder: str | Path | None,
        output_dir: str | Path,
        *,
        datalist: str | Path | None = None,
        overwrite: bool = False,
    ) -> Iterator[CaseResult | Failure]:
        """Explain all images in a folder or a table, like the bundle's command; a killed run is resumed.

        Args:
            folder: folder of images, or the one to which the table's paths are relative; without it or a table, demo
                phantoms are written and explained.
            output_dir: destination of one folder per case and the run's tables.
            datalist: table of images, see `medcf.data.find_cases`.
            overwrite: replace files written there by an earlier run.

        Yields:
            The outcome for each image, already written. Images finished by an earlier session are left out.
        """
        listed = list_cases(folder, datalist, output_dir, self.listing)
        run_folder = RunFolder(output_dir, overwrite=overwrite, **self.manifest)
        run_folder.open(listed.cases, listed.failures)
        loader = case_loader(listed.cases, self.preprocessing, run_folder, self.batch_size, self.num_workers)
        yield from listed.failures
        try:
            with case_bar(loader, show=option_of(self.inferer, "progress", True)) as bar:
                for batch in loader:
                    for result in self.batch([*batch["items"], *batch["failures"]]):
                        bar.update()
                        yield run_folder.take(result)
            end_run(run_folder, self.writers)
        finally:
            run_folder.release()

    def _explain_all(self, items: list[dict[str, Any]], target: Any) -> list[CaseResult | Failure]:
        """Explain a batch; if this raises, explain its cases one by one, so that one cannot stop the others."""
        try:
            return self._explain(items, target)
        except TargetError:
            raise
        except Exception as error:
            if len(items) == 1:
                return [Failure(items[0]["file"], "infer", *_why(error))]
            logger.warning("A batch of %d failed (%s); trying its cases one by one.", len(items), error)
            return [self._explain_all([item], target)[0] for item in items]

    @torch.no_grad()
    def _explain(self, items: list[dict[str, Any]], target: Any) -> list[CaseResult | Failure]:
        started = time.perf_counter()
        device = torch.device(self.device)
        image = torch.stack([item["image"].as_subclass(Tensor) for item in items]).to(device)
        # noise is seeded by the image's content, not by its file name
        names = [item["image"].meta.get("sha256") or digest(item["image"].numpy()) for item in items]
        with frozen(self.network, self.classifier, self.segmenter):
            with autocast(device, enabled=self.amp):
                first = option_of(self.inferer, "seed", 0)
                seeded = explain_seeds(
                    self.inferer, image, self.network, names, target, seeds=range(first, first + self.seeds)
                )
            found, expected = seeded.counterfactual, seeded.expected
            pred = found.image.as_subclass(Tensor).float()
            columns = self._columns(image, pred, found)
            if self.seeds > 1:
                confidence = self.classifier(expected).softmax(1)[range(len(image)), found.target]
                columns |= {"expected": expected, "spread": seeded.spread, "num_seeds": [self.seeds] * len(image)}
                columns |= {"seeds_flipped": seeded.flip_share.tolist(), "confidence_expected": confidence.tolist()}
                columns["num_function_evaluations"] = seeded.num_function_evaluations.tolist()
        seconds = (time.perf_counter() - started) / len(items)
        results: list[CaseResult | Failure] = []
        for index, item in enumerate(items):
            begun = time.perf_counter()
            if not bool(torch.isfinite(found.trajectory[index]).all()):
                remedy = "Lower classifier_scales, or give --amp False."
                results.append(Failure(item["file"], "infer", "the counterfactual is not finite (NaN)", remedy))
                continue
            output = {name: values[index] for name, values in columns.items()}
            restored = convert_to_dst_type(pred[index], item["image"], device=torch.device("cpu"))[0]
            native = self.postprocessing({"image": item["image"], "pred": restored})
            result = case_result(item, restored, native, output, all_steps=self.trajectory, writers=self.writers)
            result.row["seconds"] = round(seconds + time.perf_counter() - begun, 3)
            results.append(result)
        return results

    def _columns(self, image: Tensor, pred: Tensor, found: Any) -> dict[str, Any]:
        """Collect all results for a batch, each entry indexed by case."""
        count = range(len(image))
        columns: dict[str, Any] = {
            "trajectory": found.trajectory,
            "label_before": self.classifier(image).argmax(1).tolist(),
            "label_after": self.classifier(pred).argmax(1).tolist(),
            "extras": [{name: float(values[index]) for name, values in found.extras.items()} for index in count],
        }
        names = ("confidences", "target", "flipped", "unchanged", "scale", "iterations", "num_function_evaluations")
        columns |= {name: getattr(found, name).tolist() for name in names}
        if self.segmenter is not None:
            labels = [self.segmenter(picture).argmax(1) for picture in (image, pred)]
            columns["segmentation"] = torch.stack(labels, dim=1).to(torch.uint8)
        if self.attribution is not None:
            columns |= self.attribution.columns(image, columns["label_before"])
        if self.novelty is not None:
            scores = {name: values.tolist() for name, values in self.novelty(image).items()}
            columns["novelty"] = [{name: values[index] for name, values in scores.items()} for index in count]
        return columns


def _why(error: Exception) -> tuple[str, str]:
    """Explain why an image failed, and what to do."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "needs more memory than is available", "Use --device cpu, or a machine with more memory."
    logger.debug("explaining failed", exc_info=error)
    first_line = (str(error).splitlines() or [""])[0]
    if not first_line or not isinstance(error, ValueError | RuntimeError):
        first_line = f"{type(error).__name__}: {first_line}"
    return first_line[:300], "Check the image; report it if it is fine."
