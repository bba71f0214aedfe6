# SPDX-License-Identifier: Apache-2.0
"""Errors where structures change, derived from the label maps of input and truth."""

from __future__ import annotations

import pytest
import torch

from medcf.evaluation import AbsentError, Evidence, Measurement

INSIDE = {
    "name": "relative_truth_error",
    "smoothing": 0,
    "needs": {"y_pred": "{on}", "y": "image_true", "image": "image", "mask": "structure_change"},
}


def cases(**further) -> Evidence:
    image = torch.zeros(1, 1, 4, 6)
    truth, pred = image.clone(), image.clone()
    truth[..., :3], pred[..., :2] = 1.0, 1.0
    labels, labels_true = torch.zeros(1, 1, 4, 6, dtype=torch.long), torch.zeros(1, 1, 4, 6, dtype=torch.long)
    labels_true[..., :2], labels[..., 2] = 3, 1  # a structure that comes, and one that goes
    columns = {"image": image, "pred": pred, "image_true": truth, "case": ["a"], "segmentation_true": labels_true}
    return Evidence(columns | {"segmentation": labels} | further, structures={"cavum": 3, "skull": 1})


def figure(of: Evidence, mask: str = "structure_change") -> float:
    measurement = Measurement("error", {**INSIDE, "needs": {**INSIDE["needs"], "mask": mask}})
    measurement.update(of)
    return measurement.figure().value


def test_the_error_is_limited_to_the_structures_that_change() -> None:
    assert figure(cases()) == pytest.approx(1 / 3)
    assert figure(cases(), "structure_change(cavum)") == 0
    assert figure(cases(), "structure_change(skull)") == 1


def test_without_the_label_map_of_the_input_the_message_says_what_is_absent() -> None:
    lacking = cases()
    del lacking.columns["segmentation"]
    with pytest.raises(AbsentError, match="the label map of the inputs"):
        figure(lacking)
