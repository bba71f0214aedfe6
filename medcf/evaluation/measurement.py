# SPDX-License-Identifier: Apache-2.0
"""One metric of an evaluation: looked up by name, fed with what it needs, and read as a figure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import medcf.metrics  # noqa: F401 - registers the metrics
from medcf.evaluation.evidence import AbsentError, Evidence, WeightsAbsentError, select
from medcf.metrics.base import IMAGES
from medcf.metrics.exclusions import Summary
from medcf.registry import METRICS, lookup

__all__ = ["Figure", "Measurement"]

Path = tuple[str, ...]
#: The keys of an entry; all others are options for the metric's constructor.
KEYS = ("name", "of", "on", "needs", "where", "by", "read", "interval", "rows")


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        value: the figure; NaN if no case counts.
        low: lower end of its 95 % interval; NaN if there is none, as with fewer than five subjects.
        high: upper end.
        count: number of cases that count.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    count: int = 0

    def shown(self) -> dict[str, Any]:
        """Return JSON values: ``mean``, ``interval`` (None if there is none) and ``cases``."""
        interval = [self.low, self.high] if math.isfinite(self.low) and math.isfinite(self.high) else None
        return {"mean": self.value, "interval": interval, "cases": self.count}


class Measurement:
    """A metric by name, updated batch by batch, over the cases and variants that its entry specifies.

    Args:
        heading: name of the figure.
        entry: name of the metric, or a mapping with its ``name``, options for its constructor, and any of

            - ``of``: the network or column to measure instead of the default; a list, or a mapping from labels, gives
              one figure each.
            - ``on``: the images to measure, by default the counterfactuals ``pred``; may also be a mapping.
            - ``needs``: what to call it with, if different from the metric's own ``needs``.
            - ``where``: a Boolean column; other cases do not count.
            - ``by``: a column of classes, to measure each class separately; ``target`` is also passed to the metric.
            - ``read``: the metric's attribute or method that holds the figure, by default ``aggregate``.
            - ``interval``: return the mean with its interval over subjects and the number of cases.
            - ``rows``: columns for the table of cases, names to attributes or methods with one value per case; ``{of}``
              in a name stands for the label.

    Raises:
        ValueError: if no metric has that name, or it rejects the options.
    """

    def __init__(self, heading: str, entry: str | Mapping[str, Any]) -> None:
        said: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
        if "name" not in said:
            raise ValueError(f"{heading}: give the name of a metric, or a mapping with its name, not {said}.")
        self.heading, self.name = heading, str(said["name"])
        self.factory: Any = lookup(METRICS, self.name)
        self.needs: Mapping[str, str] = said.get("needs") or getattr(self.factory, "needs", IMAGES)
        self.of = _labeled(said.get("of", getattr(self.factory, "quantity", "")))
        self.on = _labeled(said.get("on", "pred"))
        self.where, self.by = said.get("where"), said.get("by")
        self.read, self.interval = said.get("read", "aggregate"), bool(said.get("interval"))
        self.rows: Mapping[str, str] = said.get("rows", {})
        self.options = {key: value for key, value in said.items() if key not in KEYS}
        #: For each variant, by its labels: the metric, the subjects of its cases, and their class.
        self.parts: dict[Path, tuple[Any, list[str], int | None]] = {}
        #: Why there is no figure, if a network lacks its weights.
        self.reason = ""

    def update(self, cases: Evidence, class_names: Mapping[int, str] | None = None) -> None:
        """Measure more cases.

        Args:
            cases: facts about them.
            class_names: names for the figures of each class, with ``by``.

        Raises:
            ValueError: if something that the metric needs is absent; the message names both.
        """
        try:
            for on_label, on in self.on.items():
                for of_label, of in self.of.items():
                    inputs = {key: cases[name.format(of=of, on=on)] for key, name in self.needs.items()}
                    for value, kept in self._classes(cases):
                        label = "" if value is None else (class_names or {}).get(value, str(value))
                        path = tuple(filter(None, (on_label, of_label, label)))
                        self._add(path, value, cases.subjects, inputs, kept)
        except WeightsAbsentError as error:
            self.reason = str(error)
        except AbsentError as error:
            raise AbsentError(
                f"{self.heading}: the metric {self.name!r} needs something the cases lack: {error}."
            ) from error

    def _classes(self, cases: Evidence) -> Iterator[tuple[int | None, Tensor | None]]:
        """Yield the classes to measure separately, and which cases belong to them; None for all."""
        kept = None if self.where is None else cases[self.where].bool()
        if self.by is None:
            yield None, kept
            return
        classes = cases[self.by]
        for value in classes.unique().tolist():
            yield value, classes == value if kept is None else (classes == value) & kept

    def _add(
        self, path: Path, value: int | None, subjects: list[str], inputs: Mapping[str, Any], kept: Tensor | None
    ) -> None:
        if path not in self.parts:
            self.parts[path] = (self._made(value), [], value)
        metric, known, _ = self.parts[path]
        if kept is not None:
            inputs, subjects = select(inputs, kept), select(subjects, kept)
        if subjects:
            others = {key: values for key, values in inputs.items() if key not in ("y_pred", "y")}
            metric(inputs["y_pred"], inputs.get("y"), **others)
            known.extend(subjects)

    def _made(self, value: int | None) -> Any:
        takes_target = self.by == "target" and "target" in inspect.signature(self.factory).parameters
        try:
            return self.factory(**self.options, **({"target": value} if takes_target else {}))
        except TypeError as error:
            raise ValueError(f"{self.heading}: correct the options of the metric {self.name!r}: {error}.") from error

    def figure(self, path: Path = ()) -> Figure:
        """Return the figure of a variant with its interval over subjects; the empty path means the only variant."""
        metric, subjects, _ = self.parts[path]
        if not subjects:
            return Figure(math.nan)
        interval = metric.interval if self.read == "aggregate" else getattr(metric, f"{self.read}_interval")
        low, high = interval(groups=subjects)
        return Figure(_read(metric, self.read), low, high, metric.counts().entered)

    def figures(self) -> Any:
        """Return JSON values: the figure, mappings of figures by label, or a sentence that says why there is none."""
        if self.reason:
            return self.reason
        found: dict[str, Any] = {}
        for path in sorted(self.parts, key=lambda path: self.parts[path][2] or 0):
            if not path:
                return self._shown(path)
            place = found
            for label in path[:-1]:
                place = place.setdefault(label, {})
            place[path[-1]] = self._shown(path)
        return found

    def _shown(self, path: Path) -> Any:
        metric, subjects, _ = self.parts[path]
        if not self.interval:
            return _plain(_read(metric, self.read)) if subjects else None
        return self.figure(path).shown()

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns that the metric adds to the table of cases."""
        return {
            name.format(of=path[-1] if path else ""): _plain(_read(metric, source))
            for path, (metric, _, _) in self.parts.items()
            for name, source in self.rows.items()
        }


def _labeled(names: str | Mapping[str, str] | list[str]) -> dict[str, str]:
    """Map the labels of variants to names; a single name has an empty label."""
    if isinstance(names, Mapping):
        return dict(names)
    return {"": names} if isinstance(names, str) else {name: name for name in names}


def _read(metric: Any, name: str) -> Any:
    value = getattr(metric, name)
    return value() if callable(value) else value


def _plain(value: Any) -> Any:
    """Convert a metric's result to JSON values; a summary becomes its mean."""
    if isinstance(value, Summary):
        return value.mean
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value
