# SPDX-License-Identifier: Apache-2.0
"""Presentation states: of the derived image, with its window, and an outline where it changed most."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom import dcmread

from medcf.data import find_cases
from medcf.dicom import DicomWriter
from medcf.dicom.presentation import largest_change
from tests.data import heads
from tests.dicom.sources import FILES, ct_series, file_of, middle, planted, scored

pytest.importorskip("highdicom")


def written(tmp_path, result, name="out", **options):
    DicomWriter(**{"banner": False, **options})(scored(result), tmp_path / name)
    folder = tmp_path / name / "dicom"
    return [dcmread(path) for path in sorted(folder.glob("presentation*.dcm"))], folder


def filled(state, shape):
    """Fill the outlines of a state, on (rows, columns)."""
    picture = Image.new("1", shape[::-1])
    for annotation in state.GraphicAnnotationSequence:
        for line in annotation.get("GraphicObjectSequence", ()):
            points = np.array(line.GraphicData).reshape(-1, 2)
            assert (points[0] == points[-1]).all()
            ImageDraw.Draw(picture).polygon([tuple(point - 0.5) for point in points], fill=1)
    return np.asarray(picture)


@pytest.mark.parametrize("kind", ["ct", "mr", "palette", "color loop"])
def test_a_state_refers_to_the_derived_image_and_outlines_its_change(tmp_path, kind):
    result = planted(file_of(FILES[kind]))
    (state,), folder = written(tmp_path, result)
    image = dcmread(folder / "counterfactual.dcm")
    (reference,) = state.ReferencedSeriesSequence[0].ReferencedImageSequence
    assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert state.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID
    assert state.StudyInstanceUID == image.StudyInstanceUID
    region = largest_change(np.abs(result.difference.T[None]) > 0.1)[0]
    drawn = filled(state, region.shape)
    assert (drawn & region).sum() / (drawn | region).sum() > 0.85
    words = state.GraphicAnnotationSequence[0].TextObjectSequence[0].UnformattedTextValue
    assert words.startswith("SYNTHETIC")


def test_the_window_and_the_rescaling_are_kept(tmp_path):
    source = dcmread(file_of(FILES["ct"]))
    source.WindowCenter, source.WindowWidth = [40, 50], [400, 350]
    source.WindowCenterWidthExplanation = ["soft", "brain"]
    source.save_as(tmp_path / "in.dcm")
    (state,), _ = written(tmp_path, planted(tmp_path / "in.dcm"))
    (window,) = state.SoftcopyVOILUTSequence
    assert (list(window.WindowCenter), list(window.WindowWidth)) == ([40, 50], [400, 350])
    assert "ReferencedImageSequence" not in window
    assert (state.RescaleSlope, state.RescaleIntercept) == (source.RescaleSlope, source.RescaleIntercept)
    assert state.PresentationLUTShape == "IDENTITY"
    assert list(state.DisplayedAreaSelectionSequence[0].PresentationPixelSpacing) == list(source.PixelSpacing)


def test_inverted_grays_stay_inverted(tmp_path):
    source = dcmread(file_of(FILES["ct"]))
    source.PhotometricInterpretation = "MONOCHROME1"
    source.save_as(tmp_path / "in.dcm")
    (state,), _ = written(tmp_path, planted(tmp_path / "in.dcm"))
    assert state.PresentationLUTShape == "INVERSE"


def test_slices_with_their_own_rescaling_have_their_own_state(tmp_path):
    (case,), _ = find_cases(ct_series(tmp_path / "in"), spatial_dims=3)  # slopes 1, 2, 1, 2, 1
    states, folder = written(tmp_path, planted(case))
    assert [int(state.RescaleSlope) for state in states] == [1, 2]
    images = {dcmread(path).SOPInstanceUID: dcmread(path) for path in folder.glob("counterfactual*.dcm")}
    for state in states:
        shown = state.ReferencedSeriesSequence[0].ReferencedImageSequence
        assert {images[each.ReferencedSOPInstanceUID].RescaleSlope for each in shown} == {state.RescaleSlope}
    assert sum(len(state.ReferencedSeriesSequence[0].ReferencedImageSequence) for state in states) == 5
    assert len({state.SeriesInstanceUID for state in states}) == 1


def test_an_outline_is_on_the_slice_that_changed(tmp_path):
    (case,), _ = find_cases(ct_series(tmp_path / "in"), spatial_dims=3)
    result = planted(case)
    states, folder = written(tmp_path, result)
    outlined = [
        annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID
        for state in states
        for annotation in state.GraphicAnnotationSequence
        if "GraphicObjectSequence" in annotation
    ]
    images = [dcmread(path) for path in sorted(folder.glob("counterfactual*.dcm"))]
    assert outlined == [images[2].SOPInstanceUID]
    assert middle(result.difference.shape)[2] == slice(2, 3)


def test_an_outline_is_on_the_frame_that_changed(tmp_path):
    shape, affine = heads.geometry("RAS", (12, 16, 5), (10, -5, 3))
    (case,), _ = find_cases(heads.save_enhanced(tmp_path / "in.dcm", heads.head(shape, affine), affine), spatial_dims=3)
    result = planted(case)
    difference = np.zeros_like(result.difference)
    difference[3:6, 3:8, 2] = 0.5
    (state,), folder = written(tmp_path, replace(result, difference=difference))
    (outlined,) = [each for each in state.GraphicAnnotationSequence if "GraphicObjectSequence" in each]
    frame = int(outlined.ReferencedImageSequence[0].ReferencedFrameNumber)
    image = dcmread(folder / "counterfactual.dcm")
    place = image.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0].ImagePositionPatient
    corner = np.diag([-1, -1, 1, 1]) @ result.affine @ [0, 0, 2, 1]
    np.testing.assert_allclose(np.array(place, float), corner[:3], atol=1e-3)


def test_an_unchanged_input_has_no_outline_and_still_says_synthetic(tmp_path):
    (state,), _ = written(tmp_path, planted(file_of(FILES["ct"]), amount=0.0))
    (only,) = state.GraphicAnnotationSequence
    assert "GraphicObjectSequence" not in only


def test_without_the_counterfactual_there_is_nothing_to_present(tmp_path):
    states, _ = written(tmp_path, planted(file_of(FILES["ct"])), objects=["presentation", "overlay"])
    assert not states
