# SPDX-License-Identifier: Apache-2.0
"""An option that no config knows stops the command at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medcf.bundle.command_line import arguments, config_files
from medcf.bundle.options import check_options, unknown_options, unused_options

PROGRAM = os.path.join("site-packages", "monai", "bundle", "__main__.py")
CONFIG = {"target": 1, "trainer": {"_target_": "a.B", "epochs": 2}, "train": {"handlers": [{"_target_": "c.D"}]}}


@pytest.mark.parametrize(
    "option",
    ["target", "trainer::epochs", "trainer#epochs", "trainer::new_argument", "train::handlers::0::x", "+train"],
)
def test_known_ids_and_new_arguments_of_components_pass(option: str) -> None:
    assert unknown_options([option], CONFIG) == []


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("tagret", "--target"),
        ("train::handler", "--train::handlers"),
        ("train::handlers::7", "Unknown"),
        ("x#y", "Unknown"),
    ],
)
def test_unknown_ids_are_named_with_the_nearest(option: str, hint: str) -> None:
    (message,) = unknown_options([option], CONFIG)
    assert option in message
    assert hint in message


def test_an_option_of_the_base_that_the_overlay_does_not_read_is_named() -> None:
    config = {
        "decay": 0.9,
        "ema": {"_target_": "a.B", "decay": "@decay"},
        "rate": 1,
        "defs": {"x": {"_target_": "c.D"}},
    }
    config |= {"train": {"trainer": {"_target_": "e.F", "lr": "$2 * @rate", "handlers": ["%defs::x"]}}, "spare": 3}
    config |= {"run": ["$@train#trainer.run()"]}
    options = {"decay": 0.5, "rate": 2, "train#trainer#steps": "@spare", "spare": 4, "defs#x#y": 1, "ema#decay": 0.1}
    messages = unused_options(options, config)
    assert [message.split()[1] for message in messages] == ["--decay", "--ema#decay"]


def test_the_command_line_is_read_as_monai_reads_it() -> None:
    argv = [
        PROGRAM,
        "run",
        "--config_file",
        "['a.json','b.json']",
        "--shift=-3",
        "--offset",
        "-2",
        "--flag",
        "--name",
        "x",
    ]
    assert arguments(argv) == {
        "config_file": ["a.json", "b.json"],
        "shift": -3,
        "offset": -2,
        "flag": True,
        "name": "x",
    }
    assert config_files(argv) == ["a.json", "b.json"]


def test_another_program_is_left_alone() -> None:
    assert arguments(["pytest", "run", "--typo", "1"]) == {}
    check_options(["pytest", "run", "--typo", "1"])


def test_options_of_an_arguments_file_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "args.json").write_text(json.dumps({"tarqet": 0}))
    argv = [PROGRAM, "run", "--config_file", str(tmp_path / "config.json"), "--args_file", str(tmp_path / "args.json")]
    with pytest.raises(ValueError, match="--target"):
        check_options(argv)


def test_an_option_that_monai_drops_because_it_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    argv = [PROGRAM, "run", "--config_file", str(tmp_path / "config.json"), "--target", "None"]
    with pytest.raises(ValueError, match="MONAI ignores --target None"):
        check_options(argv)


@pytest.mark.parametrize("words", [["--target", "opposite"], ["--trainer#epochs", "$1 + 1"], ["--trainer#epochs", "3"]])
def test_numbers_expressions_and_the_words_of_a_target_pass(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    check_options([PROGRAM, "run", "--config_file", str(tmp_path / "config.json"), *words])


def test_text_in_place_of_a_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    argv = [PROGRAM, "run", "--config_file", str(tmp_path / "config.json"), "--trainer#epochs", "many"]
    with pytest.raises(ValueError, match=r"--trainer#epochs many is text.* \(2\): give a number"):
        check_options(argv)


@pytest.mark.slow
def test_false_in_lower_case_is_refused_because_text_counts_as_true(tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"progress": True}), encoding="utf-8")
    words = [PROGRAM, "run", "--config_file", str(config), "--progress"]
    with pytest.raises(ValueError, match="write --progress False"):
        check_options([*words, "false"])
    check_options([*words, "False"])


@pytest.mark.long
def test_a_real_command_with_a_typo_fails_and_says_what_was_meant(tmp_path: Path) -> None:
    config = {
        "imports": ["$from medcf.bundle import check_options"],
        "initialize": ["$check_options()"],
        "size": 1,
        "run": ["$open('done', 'w').write(str(@size))"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "config.json"]
    wrong = subprocess.run([*command, "--sise", "2"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode != 0
    assert "Did you mean --size?" in wrong.stderr
    assert not (tmp_path / "done").exists()
    subprocess.run([*command, "--size", "2"], cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "done").read_text() == "2"
