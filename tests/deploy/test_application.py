# SPDX-License-Identifier: Apache-2.0
"""Every bundle as an application, in this process: DICOM in, DICOM out; and our operator in somebody else's."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

pytest.importorskip("monai.deploy")

from medcf.deploy import CounterfactualApplication, open_explainer
from medcf.deploy.__main__ import main
from tests.deploy.inputs import FAST, PATIENT, write_inputs

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]


def run(bundle: str, source: Path, output: Path, **settings: object) -> CounterfactualApplication:
    explainer = open_explainer(bundle, **{**FAST[bundle], "allow_synthetic": True, **settings})
    app = CounterfactualApplication(explainer, source, output)
    app.run()
    return app


def images(output: Path) -> list:
    made = [dcmread(path) for path in sorted(output.glob("*.dcm"))]
    return [each for each in made if str(each.SeriesDescription).startswith("SYNTHETIC counterfactual")]


def result(output: Path) -> dict:
    return json.loads((output / "result.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("bundle", FAST)
def test_dicom_in_dicom_out(bundle: str, tmp_path: Path, caplog) -> None:
    source = write_inputs(bundle, tmp_path / "in")
    caplog.set_level(logging.DEBUG)
    app = run(bundle, source, tmp_path / "out")
    assert not app.outcome.failed
    given = [dcmread(path) for path in sorted(source.iterdir())]
    classes = {each.SOPClassUID for each in given}
    made = [each for each in images(tmp_path / "out") if each.SOPClassUID in classes]
    made.sort(key=lambda each: float(each.get("SliceLocation") or 0))
    assert len(made) == len(given)
    assert {each.SyntheticData for each in made} == {"YES"}
    assert {str(each.PatientName) for each in made} == {PATIENT}
    assert {each.StudyInstanceUID for each in made} == {given[0].StudyInstanceUID}
    assert not {each.SOPInstanceUID for each in made} & {each.SOPInstanceUID for each in given}
    assert any(np.any(a.pixel_array != b.pixel_array) for a, b in zip(made, given, strict=True))
    outcome = result(tmp_path / "out")
    (case,) = outcome["cases"]
    assert sorted(case["files"]) == sorted(path.name for path in (tmp_path / "out").glob("*.dcm"))
    assert "1 explained" in outcome["__mercure_notification"]["text"]
    assert PATIENT not in caplog.text + json.dumps(outcome)


def test_it_is_the_explainer_s_result_to_the_last_bit(tmp_path: Path) -> None:
    source = write_inputs("diffice", tmp_path / "in")
    run("diffice", source, tmp_path / "out")
    explain = open_explainer("diffice", **{**FAST["diffice"], "allow_synthetic": True})
    folder = explain(source / "picture.dcm").save(tmp_path / "alone")
    alone = {dcmread(path).SOPInstanceUID: path for path in folder.rglob("*.dcm")}
    through = {dcmread(path).SOPInstanceUID: path for path in (tmp_path / "out").glob("*.dcm")}
    assert set(alone) == set(through)
    for uid, path in alone.items():
        assert dcmread(path).get("PixelData") == dcmread(through[uid]).get("PixelData")


def test_a_loop_is_one_object_again_if_all_its_frames_were_explained(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    loop = get_testdata_file("examples_ybr_color.dcm", download=False)
    shutil.copy(loop, tmp_path / "in" / "loop.dcm")
    app = run("diffice", tmp_path / "in", tmp_path / "out", frame="all", **{"inferer#num_inference_steps": 4})
    frames = dcmread(loop).NumberOfFrames
    assert {int(each.get("NumberOfFrames") or 1) for each in images(tmp_path / "out")} == {1, frames}
    assert len(app.outcome.cases) == frames + 1


def test_one_damaged_file_fails_and_the_others_are_written(tmp_path: Path) -> None:
    source = write_inputs("diffice", tmp_path / "in")
    whole = (source / "picture.dcm").read_bytes()
    (source / "damaged.dcm").write_bytes(whole[: len(whole) // 2])
    shutil.copy(get_testdata_file("reportsi.dcm", download=False), source / "report.dcm")
    app = run("diffice", source, tmp_path / "out")
    assert [Path(failure.file).name for failure in app.outcome.failed] == ["damaged.dcm"]
    assert len(app.outcome.cases) == 1
    outcome = result(tmp_path / "out")
    assert [each["file"] for each in outcome["left_out"]] == ["report.dcm"]
    assert "1 failed" in outcome["__mercure_notification"]["text"]


def test_synthetic_images_are_refused_unless_they_are_asked_for(tmp_path: Path) -> None:
    source = write_inputs("diffice", tmp_path / "in")
    app = run("diffice", source, tmp_path / "out", allow_synthetic=False)
    assert not list((tmp_path / "out").glob("*.dcm"))
    assert ["synthetic" in failure.reason for failure in app.outcome.failed] == [True]  # there is nothing else


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    source = write_inputs("diffice", tmp_path / "in")
    (source / "task.json").write_text('{"process": {"settings": {"tagret": 1}}}', encoding="utf-8")
    assert main(["--bundle", "diffice", "-i", str(source), "-o", str(tmp_path / "out")]) == 1
    assert "Did you mean target" in result(tmp_path / "out")["__mercure_notification"]["text"]
    assert main(["-i", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 1


def test_the_page_s_operator_works_in_somebody_else_s_application(tmp_path: Path, monkeypatch) -> None:
    """The page's example as it stands there, but for the settings: the SDK's loader and selector, our operators."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from pathlib.*?)```", text, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    write_inputs("controlcg", tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    code = code.replace('{"target": 1}', repr({**FAST["controlcg"], "allow_synthetic": True}))
    exec(compile(code, "deploy.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    assert result(tmp_path / "out")["failed"] == []
    assert len(images(tmp_path / "out")) >= len(list((tmp_path / "in").iterdir()))
