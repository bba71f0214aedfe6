# SPDX-License-Identifier: Apache-2.0
"""Images made from noise: captures that show no patient, one study a store, the same twice."""

import numpy as np
import pytest
import torch
from pydicom import dcmread

from medcf.data import StoreWriter, SyntheticStore
from medcf.dicom.generated import export_generated, main, write_generated
from medcf.runtime.synthetic import UID_ROOT


def store(folder, shape=(1, 128, 128), count=4):
    rows = [{"label": n % 2, "class_name": ("Brain", "Femur")[n % 2], "seed": 7} for n in range(count)]
    writer = StoreWriter(folder, rows, shape=shape, class_names=["Brain", "Femur"], provenance={"model sha256": "ab"})
    writer.open()
    for number, members in enumerate(writer.shards()):
        images = torch.rand(len(members), *shape, generator=torch.Generator().manual_seed(number)) * 2 - 1
        writer.write(number, images)
    return writer.close()


def test_each_image_is_a_capture_of_no_patient_in_the_series_of_its_class(tmp_path):
    made = store(tmp_path / "store")
    assert export_generated(made, tmp_path / "out", "planes", banner=False) == 4
    objects = [dcmread(path) for path in sorted((tmp_path / "out").glob("*.dcm"))]
    for index, each in enumerate(objects):
        assert (each.PatientName, each.PatientID, each.SyntheticData) == ("", "", "YES")
        assert all(each[name].value.startswith(UID_ROOT) for name in ("StudyInstanceUID", "SeriesInstanceUID"))
        shown = each.pixel_array / 255 * 2 - 1
        assert np.abs(shown - made[index]["image"][0].numpy()).max() < 0.01
        assert ("Brain", "Femur")[index % 2] in each.SeriesDescription
    assert len({each.StudyInstanceUID for each in objects}) == 1
    assert len({each.SeriesInstanceUID for each in objects}) == 2
    assert len({each.SOPInstanceUID for each in objects}) == 4


def test_a_volume_is_one_object_with_a_frame_for_every_slice(tmp_path):
    made = store(tmp_path / "store", (1, 6, 5, 4), count=1)
    export_generated(made, tmp_path / "out", banner=False)
    (path,) = (tmp_path / "out").glob("*.dcm")
    frames = dcmread(path).pixel_array
    assert frames.shape == (4, 5, 6)
    volume = made[0]["image"][0].numpy()
    assert np.abs(frames.transpose(2, 1, 0) / 4095 * 2 - 1 - volume).max() < 0.01


def test_a_small_image_is_enlarged_for_the_word_by_whole_numbers(tmp_path):
    made = store(tmp_path / "store", (1, 32, 32), count=1)
    export_generated(made, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.dcm")
    pixels, plain = dcmread(path).pixel_array, made[0]["image"][0].numpy()
    assert pixels.shape == (96, 96)
    assert np.abs(pixels[97 // 2 :: 3][:, 1::3] / 255 * 2 - 1 - plain[16:]).max() < 0.01


def test_the_end_of_a_run_writes_objects_only_if_asked_for_and_the_same_ones_twice(tmp_path):
    made = store(tmp_path / "store")
    assert write_generated(made) is made
    assert not (tmp_path / "store" / "dicom").exists()
    write_generated(made, "dicom")
    before = {path.name: path.read_bytes() for path in (tmp_path / "store" / "dicom").glob("*.dcm")}
    write_generated(SyntheticStore(tmp_path / "store"), "dicom")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "store" / "dicom").glob("*.dcm")}
    with pytest.raises(ValueError, match="output_format"):
        write_generated(made, "jpeg")


def test_the_command_names_a_folder_that_is_no_store(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "out")])
    assert str(tmp_path) in capsys.readouterr().err
