# SPDX-License-Identifier: Apache-2.0
"""What made a DICOM object: the bundle, its weights and its settings. The object's UIDs derive from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcf import __version__
from medcf.runtime.fingerprint import INDIFFERENT_KEYS, config_fingerprint, sha256
from medcf.runtime.synthetic import uid_of

__all__ = ["Job", "hash_of"]

#: Top-level ids of the writers, which tell a job what of them is in the objects.
_OF_FILES = ("output_format", "dicom_banner", "dicom_deidentify")


@dataclass(frozen=True)
class Job:
    """The maker of an object. Two jobs that are equal make the same objects.

    Attributes:
        bundle: name of the bundle, for people.
        weights: SHA-256 of all weights together; empty if unknown.
        settings: SHA-256 of the config without what does not affect results; empty if unknown.
    """

    bundle: str = "medcf"
    weights: str = ""
    settings: str = ""

    @classmethod
    def of(cls, manifest: Mapping[str, Any] | None, bundle: str = "medcf", **options: Any) -> Job:
        """Identify a run.

        Args:
            manifest: ``config`` and ``weights`` (name to path), as the explainer gives them to its run folder.
            bundle: name of the bundle.
            options: of the writer, where they change what is in the objects.
        """
        known = dict(manifest or {})
        files = {name: sha256(Path(path)) for name, path in sorted(dict(known.get("weights") or {}).items()) if path}
        config = known.get("config") or {}
        parts = config_fingerprint(config, INDIFFERENT_KEYS.union(_OF_FILES)) if config else {}
        settings = hash_of({**parts, "options": options, "seed": known.get("seed")}) if config else ""
        return cls(bundle, hash_of(files), settings)

    @property
    def known(self) -> bool:
        """Whether weights and settings are known, so that equal jobs can be told from others."""
        return bool(self.weights and self.settings)

    def uid(self, *parts: str) -> str:
        """Return the UID of an object, a series or a study of this job."""
        return uid_of(__version__, self.bundle, self.weights, self.settings, *parts)

    def describe(self) -> str:
        """Name the maker in one line, with hashes short enough to read and long enough to find it again."""
        shown = [f"medcf {__version__}", f"bundle {self.bundle}"]
        shown += [f"{name} sha256:{value[:16]}" for name, value in vars(self).items() if name != "bundle" and value]
        return ", ".join(shown)


def hash_of(values: Mapping[str, Any] | None) -> str:
    """Return the SHA-256 of JSON values; empty if there are none."""
    if not values:
        return ""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
