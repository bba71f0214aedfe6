# SPDX-License-Identifier: Apache-2.0
"""Weights load, or the message says which file, what is wrong and what to do."""

from __future__ import annotations

import pickle
import sys
import traceback

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
        ({"model": {"weight": torch.ones(3, 2)}, "epoch": 3}, "missing bias"),
        ({"optimizer": {"weight": torch.ones(3, 2)}, "epoch": 3}, "not a plain state dict.*optimizer, epoch"),
        ({"state_dict": [1, 2]}, "not a plain state dict.*state_dict"),
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


def save_whole(path):
    torch.save(torch.nn.Linear(2, 3), path)


def save_malicious(path):
    torch.save({"weight": torch.ones(3, 2), "more": Malicious()}, path)


def save_pickle(path):
    path.write_bytes(pickle.dumps(Malicious()))


def save_truncated(path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("save", "reason"),
    [(save_whole, "module.state_dict"), (save_malicious, "more than tensors"), (save_pickle, ""), (save_truncated, "")],
)
def test_nothing_is_executed_and_nobody_is_told_how_to(tmp_path, capsys, save, reason):
    save(tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt is not a readable weights file.*{reason}.*Train it\.") as error:
        load_weights(torch.nn.Linear(2, 3), tmp_path / "w.pt", remedy="Train it.")
    told = "".join(traceback.format_exception(error.value))
    assert "weights_only" not in told.replace("weights_only=True", "")
    assert "trust" not in told
    assert "executed\n" not in capsys.readouterr().out


def layers(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("holder", [None, "state_dict", "model_state_dict", "model"])
def test_what_others_put_around_a_state_dict_is_taken_off(tmp_path, holder, prefix):
    source = torch.nn.Sequential(torch.nn.Linear(2, 3))
    state = layers(source.state_dict(), prefix)
    torch.save(state if holder is None else {"epoch": 3, holder: state, "optimizer": {"lr": 1.0}}, tmp_path / "w.pt")
    network = load_weights(torch.nn.Sequential(torch.nn.Linear(2, 3)), tmp_path / "w.pt")
    assert torch.equal(network[0].weight, source[0].weight)
    assert torch.equal(read_weights(tmp_path / "w.pt")["0.bias"], source[0].bias)


def test_a_part_that_is_called_module_keeps_its_name(tmp_path):
    def build():
        return torch.nn.ModuleDict({"module": torch.nn.Linear(2, 3)})

    source = build()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    assert torch.equal(load_weights(build(), tmp_path / "w.pt")["module"].weight, source["module"].weight)


def old_names(state, conditional):
    """Name parameters as MONAI Generative did; its attention without cross-attention had a projection it never used."""
    old = {}
    for name, value in state.items():
        name = name.replace(".postconv.", ".conv.")
        name = name.replace(".out_proj.", ".to_out.0.") if conditional else name.replace(".attn.to_", ".to_")
        old[name] = value
        if not conditional and ".to_q." in name:
            old[name.replace(".to_q.", ".proj_attn.")] = torch.ones_like(value)
    return old


@pytest.mark.parametrize("conditional", [True, False])
def test_weights_of_monai_generative_load_and_compute_the_same(tmp_path, tiny_unet, capsys, conditional):
    options = {"use_combined_linear": False, "include_fc": conditional}
    options |= {"with_conditioning": True, "cross_attention_dim": 4} if conditional else {}
    source = tiny_unet(**options)
    for value in source.parameters():
        torch.nn.init.normal_(value, std=0.2)
    state = old_names(source.state_dict(), conditional)
    assert state.keys() != source.state_dict().keys()
    torch.save({"state_dict": layers(state, "module.")}, tmp_path / "w.pt")
    inputs = torch.rand(1, 1, 8, 8), torch.tensor([5]), torch.rand(1, 1, 4) if conditional else None
    network = load_weights(tiny_unet(**options), tmp_path / "w.pt")
    torch.testing.assert_close(network(*inputs), source(*inputs), rtol=0, atol=0)
    wrong = tiny_unet(**options | {"include_fc": not conditional})
    before = wrong(*inputs)
    with pytest.raises(ValueError, match=f"use_combined_linear=False, include_fc={conditional}"):
        load_weights(wrong, tmp_path / "w.pt")
    assert torch.equal(wrong(*inputs), before)
    del state["conv_in.conv.weight"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"missing conv_in\.conv\.weight"):
        load_weights(tiny_unet(**options), tmp_path / "w.pt")
    assert capsys.readouterr().out == ""


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
