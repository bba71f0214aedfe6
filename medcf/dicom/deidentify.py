# SPDX-License-Identifier: Apache-2.0
"""The source's headers without the patient: the Basic Profile of PS3.15, as dicom-anonymizer lists and applies it.

Objects are made from headers that were cleaned before, so that nothing of the patient can get into them, and what medcf
says of them stays. Pixels are not cleaned: letters that are part of the picture stay part of it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version

from pydicom.datadict import dictionary_has_tag
from pydicom.dataset import Dataset

from medcf.dicom.derived import without_pixels
from medcf.dicom.marks import code
from medcf.dicom.source import Source
from medcf.dicom.templates import extra

__all__ = ["deidentified", "deidentified_source", "mapped_uid"]

logger = logging.getLogger(__name__)

_EDITION = "dicomfields_2026c"
_STANDARD = "1.2.840.10008."  # UIDs that say nothing about a patient: of SOP classes, transfer syntaxes, atlases
_BASIC_PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")
_REPEATED = 4  # numbers of a rule for a repeating group: group, element, and which of their bits count

_NO_TIME = {"DA": "", "TM": "", "DT": ""}
_SOME_TIME = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}

Rule = Callable[[Dataset, tuple[int, int]], None]


def mapped_uid(uid: str) -> str:
    """Return what stands for a UID: the same in every object, process and run, and nobody's own.

    Who knows a UID can tell what stands for it; nobody can get from there to the UID.

    Example:
        >>> mapped_uid("1.2.3") == mapped_uid("1.2.3") != mapped_uid("1.2.4")
        True
    """
    if not uid or uid.startswith(_STANDARD):
        return uid
    number = int.from_bytes(hashlib.sha256(f"medcf de-identified\0{uid}".encode()).digest()[:16])
    return f"2.25.{number}"


def deidentified_source(source: Source) -> Source:
    """Return a source whose headers are de-identified; files and pixels are the same."""
    headers = {plane.path: plane.header for plane in source.planes}
    if any(header.get("BurnedInAnnotation") == "YES" for header in headers.values()):
        logger.warning("A source says that letters are burned in: only headers are de-identified, not pixels.")
    clean = {path: deidentified(header) for path, header in headers.items()}
    return replace(source, planes=[replace(plane, header=clean[plane.path]) for plane in source.planes])


def deidentified(header: Dataset) -> Dataset:
    """Return a copy of a header without pixels, private attributes, and what the Basic Profile removes."""
    dataset = without_pixels(header)
    _clean(dataset, *_rules())
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"PS3.15 Basic Profile, dicom-anonymizer {version('dicom-anonymizer')}"
    dataset.DeidentificationMethodCodeSequence = [code(*_BASIC_PROFILE)]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    return dataset


def _clean(dataset: Dataset, rules: Mapping[tuple[int, ...], Rule], repeated: Mapping[tuple[int, ...], Rule]) -> None:
    """Apply the rules to a data set and to the items of its sequences; the package itself goes into none."""
    for tag in list(dataset.keys()):
        rule = rules.get((tag.group, tag.element))
        for (group, element, of_group, of_element), other in repeated.items():
            if tag.group & of_group == group & of_group and tag.element & of_element == element & of_element:
                rule = other
        if tag.is_private or not dictionary_has_tag(tag):
            del dataset[tag]
        elif rule is not None:
            rule(dataset, (tag.group, tag.element))
        if tag in dataset and dataset[tag].VR == "SQ":
            for item in dataset[tag].value:
                _clean(item, rules, repeated)


@cache
def _rules() -> tuple[dict[tuple[int, ...], Rule], dict[tuple[int, ...], Rule]]:
    """Return the rules for single attributes, and for repeating groups."""
    package = extra("dicomanonymizer.simpledicomanonymizer")
    listed = package.initialize_actions(_EDITION)
    ours: dict[Rule, Rule] = {
        package.replace_UID: _map_uids,
        package.delete_or_empty_or_replace_UID: _map_or_keep,
        package.delete: _drop,
    }
    empties = (package.empty, package.delete_or_empty)
    chosen = {}
    for tag, rule in listed.items():
        dummies = _NO_TIME if rule in empties else _SOME_TIME
        chosen[tag] = ours.get(rule) or partial(_apply, rule=rule, dummies=dummies)
    return (
        {tag: rule for tag, rule in chosen.items() if len(tag) < _REPEATED},
        {tag: rule for tag, rule in chosen.items() if len(tag) == _REPEATED},
    )


def _drop(dataset: Dataset, tag: tuple[int, int]) -> None:
    del dataset[tag]


def _map_uids(dataset: Dataset, tag: tuple[int, int]) -> None:
    """Replace UIDs by what stands for them: in every process the same, while the package draws others in each."""
    element = dataset[tag]
    if element.VR == "UI" and element.VM:
        uids = element.value if element.VM > 1 else [element.value]
        element.value = [mapped_uid(str(uid)) for uid in uids]


def _apply(dataset: Dataset, tag: tuple[int, int], rule: Rule, dummies: Mapping[str, str]) -> None:
    """Apply a rule of the package, but to what it would fill with random UIDs, or with a date that is none."""
    element = dataset[tag]
    if element.VR == "SQ" and (dummies is _SOME_TIME or element.keyword.startswith("Referenced")):
        del dataset[tag]  # no image needs it, and references may not be empty
    elif element.VR == "SQ":
        element.value = []
    elif element.VR == "UI":
        _map_uids(dataset, tag)
    elif element.VR in dummies:
        element.value = dummies[element.VR]
    else:
        rule(dataset, tag)


def _map_or_keep(dataset: Dataset, tag: tuple[int, int]) -> None:
    """Keep references, whose UIDs are mapped when their items are reached."""
    if dataset[tag].VR != "SQ":
        _map_uids(dataset, tag)
