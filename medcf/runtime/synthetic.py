# SPDX-License-Identifier: Apache-2.0
"""The mark of synthetic DICOM objects: an attribute, and UIDs under medcf's own root."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["UID_ROOT", "says_synthetic", "uid_of"]

UID_ROOT = "2.25.336452796219889629860423921228590257823."
"""A UUID as an object identifier (ITU-T X.667), which needs no registration, and a dot."""

_OWN_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


def uid_of(*parts: str) -> str:
    """Return the UID that belongs to some text: the same text has the same UID, on every machine.

    Args:
        parts: what the object depends on, in order.

    Returns:
        At most 64 characters, under `UID_ROOT`.

    Example:
        >>> uid_of("a", "b") == uid_of("a", "b") != uid_of("ab")
        True
    """
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=UID_ROOT, entropy_srcs=["\0".join(parts)]))


def says_synthetic(header: Dataset) -> bool:
    """Tell whether a DICOM object says that it is synthetic (SyntheticData is YES), or was made by medcf.

    Args:
        header: of any object.
    """
    if str(header.get("SyntheticData", "") or "").strip().upper() == "YES":
        return True
    return any(str(header.get(name, "") or "").startswith(UID_ROOT) for name in _OWN_UIDS)
