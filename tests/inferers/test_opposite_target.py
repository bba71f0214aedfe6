# SPDX-License-Identifier: Apache-2.0
"""The target "opposite" asks each image for the class that the classifier does not see in it."""

from __future__ import annotations

import pytest
import torch

from medcf.inferers.checks import TargetError, class_index

IDS = ["a", "b", "c", "d"]


def test_each_image_gets_the_class_it_is_not(make_method, images):
    images[2] += 0.9
    result = make_method("attack", target="opposite").explain(images, None, IDS)
    assert result.target.tolist() == [1, 1, 0, 1]
    assert not result.unchanged.any()
    for index, target in enumerate(result.target.tolist()):
        alone = make_method("attack", target=target).explain(images, None, IDS)
        torch.testing.assert_close(result.image[index], alone.image[index])


def test_an_index_for_one_call_goes_before_it(make_method, images):
    method = make_method("unchanged", target="opposite")
    assert method.explain(images, None, IDS, target=0).unchanged.all()
    assert method.explain(images, None, IDS).target.tolist() == [1] * 4


def test_other_words_and_other_numbers_of_classes_are_refused(make_method, images):
    with pytest.raises(ValueError, match="'contrary' is not a class"):
        make_method("unchanged", target="contrary")
    with pytest.raises(ValueError, match="'contrary' is not a class"):
        make_method("unchanged").explain(images, None, IDS, target="contrary")
    three = make_method("unchanged", target="opposite", classifier=lambda image: torch.zeros(len(image), 3))
    with pytest.raises(ValueError, match="two classes"):
        three.explain(images, None, IDS)


def test_a_word_that_is_no_class_is_refused_with_the_names_of_those_that_are():
    assert class_index("lung OPACITY", ["Normal", "Lung opacity"]) == 1
    assert class_index("opposite", ["Normal", "Lung opacity"]) == "opposite"
    with pytest.raises(TargetError, match=r"'pneumonia' is not a class: give its name \(Normal, Lung opacity\)"):
        class_index("pneumonia", ["Normal", "Lung opacity"])


def test_a_region_of_another_kind_is_refused_before_any_image(make_method):
    with pytest.raises(ValueError, match="region=5"):
        make_method("unchanged", region=5)
