# SPDX-License-Identifier: Apache-2.0
"""A training that can be killed at any time: its checkpoint, its average, its weights."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers import EMAHandler as IgniteEMAHandler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medcf.networks.denoiser import unwrap
from medcf.runtime.atomic import replace_file
from medcf.runtime.fingerprint import flat_options
from medcf.runtime.subjects import write_subjects
from medcf.runtime.weights import write_class_names

__all__ = ["EMAHandler", "ExportWeights", "ResumableCheckpoint", "save_atomically"]

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
#: Prefixes of option ids about location, speed and the gate afterward; a resumed training accepts changes silently.
_PLACES = (
    *("_meta_", "configs", "imports", "initialize", "run", "finalize", "bundle_root", "dataset_dir", "datalist"),
    *("output_dir", "cache_dir", "models_dir", "export_path", "device", "num_workers", "resume", "writer", "state"),
    *("gate", "gate_classifiers", "check_gate"),
)
#: Options that define another model or task; a resumed training refuses changes.
_MODEL_AND_DATA = (
    *("images", "network_def", "predictor", "segmenter_def", "segmentation_guided", "spatial_size", "spacing"),
    *("preprocessing", "num_train", "train_split", "phantom_seed", "targets", "null_label", "train#dataset", "loss"),
    *("scheduler", "num_train_timesteps", "prediction_type", "epoch_length"),
    *("rank", "alpha", "adapted_layers"),
)


def save_atomically(content: Any, path: str | Path) -> Path:
    """``torch.save`` that leaves either the old file or the complete new one, never a partial one.

    Args:
        content: argument for ``torch.save``.
        path: file to write; its folder is created if missing.

    Returns:
        The path.
    """
    return replace_file(path, lambda file: torch.save(content, file), binary=True)


class ResumableCheckpoint(Checkpoint):
    """Ignite's `Checkpoint` that keeps the whole state of a training in one file and resumes from it.

    The file ``checkpoint.pt`` is replaced atomically at the end of an epoch; if it exists when the trainer starts,
    everything is restored from it. Together with `medcf.training.sampler`, a training that was killed and restarted
    with the same command has the same losses as an uninterrupted one. Place it after the loss curve, which is part of
    it, and before anything that may fail, such as validation and previews.

    A training may continue with other options: differences are logged, and learning rate, weight decay and the like
    take the new values. Options that change the model or the data are refused.

    Args:
        directory: folder of the checkpoint.
        save_dict: name to object with ``state_dict`` and ``load_state_dict``; the trainer is added automatically.
        every: epochs between two checkpoints.
        resume: False starts over and overwrites.
        options: the config, for comparison with that of the resumed training.
        images: digest of the training's own images, see `medcf.training.datasets.own_dataset`.
    """

    def __init__(
        self,
        directory: str | Path,
        save_dict: Mapping[str, Any],
        every: int = 1,
        resume: bool = True,
        options: Mapping[str, Any] | None = None,
        images: str | None = None,
    ) -> None:
        # not Ignite's DiskSaver: it removes the old file before writing the new one, and a kill leaves its temporary
        # file
        super().__init__(dict(save_dict), self._write, filename_pattern=CHECKPOINT)
        self.path = Path(directory) / CHECKPOINT
        self.every = every
        self.resume = resume
        self.options = {} if options is None else {**dict(flat_options(options)), "images": images}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        self.to_save = {**self.to_save, "trainer": engine}
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every) | Events.COMPLETED, self)

    def _write(self, content: Mapping[str, Any], *_: Any) -> None:
        if idist.get_rank() == 0:
            save_atomically({**content, "options": json.dumps(self.options)}, self.path)

    def restore(self, engine: Engine) -> None:
        """Load the checkpoint, if there is one.

        Raises:
            ValueError: if the checkpoint is damaged, belongs to another training, or was trained for longer than now
                requested.
        """
        # MONAI's AdversarialTrainer would store whole modules; what a training needs is in save_dict, by name
        engine.state_dict_user_keys.clear()
        if not (self.resume and self.path.is_file()):
            return
        content = self._read()
        begun_with = json.loads(content.pop("options", "{}"))
        max_epochs, epoch_length = engine.state.max_epochs or 0, engine.state.epoch_length or 0
        remedy = "Pass --resume False to start over, or another --output_dir."
        if begun_with:
            self._compare(begun_with, remedy)
        if content.keys() != self.to_save.keys() or content["trainer"]["epoch_length"] != epoch_length:
            raise ValueError(f"{self.path} is the checkpoint of another training. {remedy}")
        trainer = content["trainer"]
        if trainer["iteration"] > max_epochs * epoch_length:
            raise ValueError(
                f"{self.path} is at iteration {trainer['iteration']}, beyond the {max_epochs * epoch_length} asked "
                f"for. {remedy}"
            )
        trainer["max_epochs"] = max_epochs
        objects = list(self.to_save.values())
        asked_for = [(each, _settings(each)) for each in objects if isinstance(each, Optimizer | LambdaLR)]
        try:
            self.load_objects(self.to_save, content)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path} is the checkpoint of another network. {remedy} ({error})") from error
        for each, settings in sorted(asked_for, key=lambda pair: isinstance(pair[0], LambdaLR)):
            _change_settings(each, settings)
        logger.info("Resuming from iteration %d of %s.", engine.state.iteration, self.path)

    def _read(self) -> dict[str, Any]:
        try:
            return dict(torch.load(self.path, map_location="cpu", weights_only=True))
        except OSError:
            raise
        except Exception:  # torch's own text is hidden, as in medcf.runtime.weights
            raise ValueError(
                f"{self.path} is damaged and cannot be read. Delete it and start the same command again: "
                "the training starts over. Weights exported by an earlier training are kept."
            ) from None

    def _compare(self, begun_with: Mapping[str, Any], remedy: str) -> None:
        """Report which options differ from those of the resumed training, and refuse some of them."""
        names = [
            name
            for name in dict.fromkeys([*begun_with, *self.options])
            if begun_with.get(name) != self.options.get(name) and not _is_one_of(name, _PLACES)
        ]
        told = {name: _difference(name, begun_with.get(name), self.options.get(name)) for name in names}
        if refused := [text for name, text in told.items() if _is_one_of(name, _MODEL_AND_DATA)]:
            raise ValueError(
                f"{self.path} began with another model or other data, and cannot be resumed: {'; '.join(refused)}. "
                f"Restore them. {remedy}"
            )
        if told:
            logger.warning("Resuming with options that differ from those at the start: %s.", "; ".join(told.values()))


def _is_one_of(name: str, ids: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}#") for each in ids)


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "images":
        return "the images or their labels (--dataset_dir, --datalist)"
    values = [json.dumps(value) for value in (before, now)]
    return f"{name} was {values[0]}, is {values[1]}" if max(map(len, values)) <= 80 else name


#: A schedule's progress; everything else in it is settings.
_REACHED = ("last_epoch", "_step_count", "_last_lr", "base_lrs", "lr_lambdas", "_is_initial")


def _settings(part: Optimizer | LambdaLR) -> Any:
    """Return the settings of a part of a training, without its progress."""
    if isinstance(part, LambdaLR):
        return {name: value for name, value in part.state_dict().items() if name not in _REACHED}
    return [{name: value for name, value in group.items() if name != "params"} for group in part.param_groups]


def _change_settings(part: Optimizer | LambdaLR, settings: Any) -> None:
    """Apply the current settings to a restored optimizer, and afterward to its schedule."""
    if isinstance(part, LambdaLR):
        groups = part.optimizer.param_groups
        part.base_lrs = [group["initial_lr"] for group in groups]
        vars(part).update(settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # get_last_lr() is the current rate, which is about to change
            for group, rate in zip(groups, part.get_lr(), strict=True):
                group["lr"] = rate
        return
    for group, asked in zip(part.param_groups, settings, strict=True):
        place, before = group["lr"], group.get("initial_lr", group["lr"])
        group.update(asked)
        now = group.get("initial_lr", asked["lr"])
        group["lr"] = place if now == before else place * now / before  # for schedules that continue from the last rate


class EMAHandler(IgniteEMAHandler):
    """Ignite's EMA with a decay that depends only on the iteration.

    ``ema = d ema + (1 - d) weights`` after every iteration i, with ``d = min(decay, (1 + i) / (warmup + i))``: the
    initial, random weights are forgotten quickly. Ignite's own warm-up keeps a counter that no checkpoint holds; here a
    checkpoint needs only the average itself, ``ema_model``.

    Args:
        network: the trained network; a `DistributedDataParallel` wrapper is removed.
        decay: the decay after the warm-up, below 1.
        warmup: the larger, the sooner old weights are forgotten at the beginning.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999, warmup: int = 10) -> None:
        super().__init__(network, momentum=1.0 - decay)
        self.decay = decay
        self.warmup = warmup

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Attach to a trainer; the current momentum is ``engine.state.ema_momentum``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)

    def update(self, engine: Engine) -> None:
        """Average in the weights of this iteration."""
        iteration = engine.state.iteration
        momentum = 1.0 - min(self.decay, (1 + iteration) / (self.warmup + iteration))
        engine.state.ema_momentum = momentum  # type: ignore[attr-defined]  # where Ignite's update looks for it
        self._update_ema_model(engine, "ema_momentum")


class ExportWeights:
    """Write a network's weights as a plain state dict when the training is complete.

    Args:
        network: the network, such as ``ema_model`` of `EMAHandler`.
        path: file to write.
        dtype: floating-point type of the file, such as ``"float16"`` for half the size; None keeps the network's.
            Loading the weights converts it back.
        class_names: names of the user's classes, stored next to the weights; None for phantoms.
        subjects: hashed names of whom the network is trained on, stored next to the weights, for generators
            (`medcf.runtime.subjects`); None stores nothing.

    Raises:
        ValueError: if the folder holds weights for other classes.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path,
        dtype: str | None = None,
        class_names: Sequence[str] | None = None,
        subjects: Sequence[str] | None = None,
    ) -> None:
        self.network, self.subjects = network, subjects
        self.path = Path(path)
        if class_names is not None and idist.get_rank() == 0:
            write_class_names(self.path.parent, class_names)
        self.dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file, on the main process."""
        if idist.get_rank() == 0:
            state = unwrap(self.network).state_dict()
            write_subjects(self.path, self.subjects)
            save_atomically({key: self._stored(value) for key, value in state.items()}, self.path)
            logger.info("Wrote the weights of iteration %d to %s.", engine.state.iteration, self.path)

    def _stored(self, value: torch.Tensor) -> torch.Tensor:
        dtype = self.dtype if value.is_floating_point() else None
        return value.detach().to("cpu", dtype or value.dtype).contiguous().clone()
