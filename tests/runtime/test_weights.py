# SPDX-License-Identifier: Apache-2.0
"""Weights load, or the message says which file, what is wrong and what to do."""

from __future__ import annotations

import pickle
import sys

import pytest
import torch

from medcf.runtime.error_report import FilesFailed, report_errors, root_cause
from medcf.runtime.weights import load_weights, read_weights


def test_weights_load_frozen_and_in_evaluation_mode(tmp_path):
    source = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout())
    torch.save(source.state_dict(), tmp_path / "w.pt")
    network = load_weights(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout()), tmp_path / "w.pt")
    torch.testing.assert_close(network[0].weight, source[0].weight)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    trainable = load_weights(torch.nn.Sequential(torch.nn.Linear(2, 3)), tmp_path / "w.pt", frozen=False)
    assert trainable.training


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(3, 2)}, r"missing bias"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3), "more": torch.ones(1)}, "unexpected more"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(4)}, r"bias has shape \(4,\) instead of \(3,\)"),
        ({"weight": torch.full((3, 2), torch.nan), "bias": torch.ones(3)}, "not finite, in weight"),
        ({"model": {"weight": torch.ones(3, 2)}, "epoch": 3}, "not a plain state dict.*model, epoch"),
        ([1, 2], "not a plain state dict.*list"),
        ({}, "not a plain state dict"),
    ],
)
def test_wrong_content_is_described(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt.*{message}.*Train it\.") as error:
        load_weights(torch.nn.Linear(2, 3), tmp_path / "w.pt", remedy="Train it.")
    assert len(str(error.value)) < 500


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_is_never_executed(tmp_path, capsys):
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="not a readable weights file"):
        read_weights(tmp_path / "w.pt")
    assert "executed" not in capsys.readouterr().out


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist\. Train it\."):
        read_weights(tmp_path / "none.pt", remedy="Train it.")


def test_cause_is_found_below_monais_wrappers():
    def fail():
        try:
            try:
                raise ValueError("the reason")
            except ValueError as error:
                raise RuntimeError("applying transform <x>") from error
        except RuntimeError as error:
            raise RuntimeError("Failed to evaluate ConfigExpression") from error

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert str(root_cause(caught.value)) == "the reason"
    plain = RuntimeError("3 of 4 files failed")
    assert root_cause(plain) is plain


@pytest.mark.parametrize(("kind", "lines"), [(FilesFailed, 1), (ValueError, None)])
def test_a_run_with_failed_files_ends_without_a_traceback(monkeypatch, capsys, kind, lines):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    report_errors()
    try:
        try:
            raise kind("3 of 4 files failed")
        except kind as error:
            raise RuntimeError("Failed to evaluate ConfigExpression") from error
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    printed = capsys.readouterr().err
    assert "3 of 4 files failed" in printed.strip().splitlines()[-1]
    assert ("Traceback" in printed) == (lines is None)
