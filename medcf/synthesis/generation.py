# SPDX-License-Identifier: Apache-2.0
"""The job of a bundle that makes images: it fills a store, on one process or on those of torchrun."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import medcf
from medcf.data.store_files import StoredType
from medcf.data.store_writer import StoreWriter
from medcf.data.synthetic_store import SyntheticStore
from medcf.runtime.fingerprint import config_fingerprint, sha256
from medcf.runtime.owned import lock_folder
from medcf.runtime.progress import progress_bar
from medcf.runtime.ranks import collect, rank, run_on_main, world_size
from medcf.runtime.subjects import read_subjects
from medcf.synthesis.overview import draw_overview
from medcf.synthesis.sampler import Request, Sampler

__all__ = ["Generation"]

logger = logging.getLogger(__name__)


class Generation:
    """Makes the images of a store that do not exist yet.

    A shard is made by one process in one go, so the images do not depend on the number of processes, nor on how often
    the run was killed and started again.

    Args:
        sampler: draws the images.
        requests: what each image shows, see `medcf.synthesis.spread_requests`.
        output_dir: folder of the store.
        shape: shape (C, *spatial) of an image.
        class_names: names of the classes.
        weights: files that decide about the images, by name: networks and adapters. The subjects that they saw are
            read from beside the trained ones.
        trained_on_images: names in ``weights`` of those whose subjects count; None means all.
        config: raw config of the run (`medcf.runtime.fingerprint.running_config`).
        settings: further columns of the manifest, the same for all images, such as the solver's name.
        shard_size: images per file.
        dtype: see `StoreWriter`.
        overwrite: start over.
        columns: images of each condition in the overview.
        part: this job's number and the number of jobs that fill the store side by side, such as those of a SLURM array;
            whichever is last writes the manifest.

    Raises:
        ValueError: if the part is impossible, or is to start over what the other parts fill.
    """

    def __init__(
        self,
        sampler: Sampler,
        requests: Sequence[Request],
        output_dir: str | Path,
        *,
        shape: Sequence[int],
        class_names: Sequence[str] = (),
        weights: Mapping[str, str | Path] | None = None,
        trained_on_images: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        shard_size: int = 64,
        dtype: StoredType = "uint8",
        overwrite: bool = False,
        columns: int = 8,
        part: Sequence[int] | None = None,
    ) -> None:
        self.sampler, self.requests, self.folder, self.columns = sampler, list(requests), Path(output_dir), columns
        self.part, self.parts = (0, 1) if part is None else map(int, part)
        if not 0 <= self.part < self.parts or (overwrite and self.parts > 1):
            raise ValueError(f"part={part}: give [k, n] with k from 0 to n - 1, and no --overwrite True with it.")
        files = {name: Path(path) for name, path in (weights or {}).items()}
        counted = files if trained_on_images is None else {name: files[name] for name in trained_on_images}
        names = list(class_names)
        rows = [
            {
                "label": request.label,
                "class_name": "" if request.label is None else names[request.label] if names else str(request.label),
                "caption": request.prompt or "",
                "seed": sampler.seed,
            }
            for request in self.requests
        ]
        provenance = {
            "medcf": medcf.__version__,
            "torch": torch.__version__,
            "num_inference_steps": sampler.num_inference_steps,
            "guidance_scale": sampler.guidance_scale,
            **{f"{name} sha256": sha256(path) for name, path in files.items()},
            **(settings or {}),
            "config": config_fingerprint(config or {}),
        }
        self.writer = StoreWriter(
            self.folder,
            rows,
            shape=shape,
            class_names=names,
            provenance=provenance,
            subjects=read_subjects(counted.values()),
            shard_size=shard_size,
            dtype=dtype,
            overwrite=overwrite,
        )

    def run(self) -> SyntheticStore | None:
        """Make what is missing, then write the manifest and an overview.

        Returns:
            The store; None on all processes except the main one, and while other parts have shards to make.

        Raises:
            ValueError: if the folder holds another store, or files that are no store's.
            RuntimeError: if another run is writing to this folder.
        """
        start, locks = time.perf_counter(), []

        def begin() -> list[int]:
            self.folder.mkdir(parents=True, exist_ok=True)
            locks.append(lock_folder(self.folder, ".lock" if self.parts == 1 else f".lock-{self.part}"))
            self.writer.open()
            return [number for number in self.writer.pending() if number % self.parts == self.part]

        try:
            pending = run_on_main("open the store", begin)
            mine, shards = pending[rank() :: world_size()], self.writer.shards()
            wanted = sum(len(shards[number]) for number in range(self.part, len(shards), self.parts))
            kept = wanted - sum(len(shards[number]) for number in pending)
            if kept and rank() == 0:
                logger.info("%d of %d images in %s exist and are kept.", kept, wanted, self.folder)
            total = sum(len(shards[number]) for number in mine)
            with self._tidy(), progress_bar(total, "images", unit="image", show=rank() == 0) as bar:
                for number in mine:
                    members = shards[number]
                    requests = [self.requests[index] for index in members]
                    self.writer.write(number, self.sampler.draw(requests, members, bar.update))
            collect("finish", total)
            if rank() > 0:
                return None
            if left := self.writer.pending():
                logger.info("%d shards of %s are left to the other parts.", len(left), self.folder)
                return None
            store = self.writer.close()
            draw_overview(store, self.folder / "overview.png", columns=self.columns)
        finally:
            for lock in locks:
                if lock is not None:
                    lock.close()
        logger.info(
            "%d images of %d classes or prompts (SYNTHETIC, not for diagnosis) in %s, %.0f s of this session; "
            "overview.png shows some, manifest.csv lists all.",
            len(store),
            len({(row["label"], row["caption"]) for row in store.rows}),
            self.folder,
            time.perf_counter() - start,
        )
        return store

    @contextmanager
    def _tidy(self) -> Iterator[None]:
        """Leave no store behind of which not one shard could be made: it would be in the way of another command."""
        try:
            yield
        except Exception:
            if world_size() == self.parts == 1:  # others may be making theirs
                self.writer.discard()
            raise
