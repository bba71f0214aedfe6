# SPDX-License-Identifier: Apache-2.0
"""The experiment's parts: scores by hand, paired differences, equal numbers of steps, first weights."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet, resnet18
from PIL import Image
from scipy.stats import ttest_rel

from benchmarks.fulora.__main__ import ARMS, PAIRS, main, tables
from benchmarks.fulora.copies import main as count_copies
from benchmarks.fulora.images import CLASSES, SEEDS, Generator, Images, phantom_options
from benchmarks.fulora.real import main as study_real
from benchmarks.fulora.real import rows_by_country
from benchmarks.fulora.real_sets import LABELS, african, read_planes, spanish, without
from benchmarks.fulora.study import Arm, Result, Study
from benchmarks.fulora.tables import difference_table, differences
from benchmarks.fulora.training import Recipe, probabilities, scores, train
from benchmarks.fulora.tsne import draw_sets, oracle_features
from medcf.data import StoreWriter
from medcf.networks.classifiers import CLASSIFIERS, create_classifier
from medcf.phantoms import PairedPlanesDataset, PlanesDataset
from medcf.runtime.atomic import write_json


def test_a_prediction_of_an_absent_class_is_an_error_and_macro_averages_ignore_it():
    label = torch.tensor([0, 0, 1, 1])
    predicted = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    found = scores(predicted, label)  # true and found: 0 0, 0 2, 1 1, 1 0
    assert found["accuracy"] == 0.5
    assert found["recall"] == 0.5  # one of two in either class
    assert found["precision"] == pytest.approx((1 / 2 + 1 / 1) / 2)
    assert found["f"] == pytest.approx((0.5 + 2 / 3) / 2)
    # class 0: 0.7, 0.1 against 0.2, 0.6: 2 of 4 pairs in order; class 1: 0.7, 0.3 against 0.2, 0.2: all
    assert found["auc"] == pytest.approx((2 / 4 + 1.0) / 2)


def test_differences_are_paired_by_seed_with_students_interval():
    base, better = [0.5, 0.6, 0.4, 0.7], [0.55, 0.68, 0.43, 0.77]
    rows = [
        {"network": "n", "arm": arm, "seed": seed, "accuracy": value}
        for arm, values in (("es", base), ("hb", better))
        for seed, value in enumerate(values)
    ]
    mean, low, high = differences(rows, "accuracy", "es")["n", "hb"]
    exact = ttest_rel(better, base)
    interval = exact.confidence_interval()
    assert mean == pytest.approx(0.0575)
    assert (low, high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_network_reads_one_channel_and_gives_six_classes(name):
    network = create_classifier(name, 6, 64).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        found = network(images)
        assert found.shape == (2, 6)
        assert not torch.equal(found[0], found[1])


def test_first_weights_for_color_give_what_they_give_for_gray(tmp_path):
    torch.manual_seed(0)
    color = resnet18(spatial_dims=2, n_input_channels=3, num_classes=1000, conv1_t_stride=2).eval()
    torch.save(color.state_dict(), tmp_path / "resnet18.pt")
    gray = create_classifier("ResNet18", 6, 64, tmp_path / "resnet18.pt").eval()
    images = torch.randn(2, 1, 64, 64)
    color.fc = gray.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(gray(images), color(images.repeat(1, 3, 1, 1)), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="does not hold the weights of DenseNet169"):
        create_classifier("DenseNet169", 6, 64, tmp_path / "resnet18.pt")


def two_kinds(count, seed):
    label = torch.arange(count) % 2
    noise = torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Images((0.3 * noise + (label * 2.0 - 1)[:, None, None, None] * 0.3).clamp(-1, 1), label)


def test_a_training_runs_the_steps_it_is_told_and_learns():
    torch.manual_seed(0)
    network, seen = create_classifier("ResNet18", 2, 32), []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    trained = train(network, two_kinds(48, 0), 15, Recipe(batch_size=16, learning_rate=0.01), augmented=True, seed=0)
    assert seen == [16] * 15  # more steps than the set has batches
    test = two_kinds(40, 1)
    assert scores(probabilities(trained, test.image), test.label)["accuracy"] >= 0.9


def test_arms_are_compared_with_real_images_alone_for_as_many_steps():
    assert ARMS["es_steps"].parts == ("ES",)
    assert ARMS["es_steps"].steps_of == ARMS["hb"].parts
    recipe = Recipe(epochs=10, batch_size=24)
    assert recipe.steps(360) == 150
    assert recipe.steps(361) == 160


def test_every_rank_and_the_base_are_compared_with_as_many_steps_on_real_images():
    ranks = {key: Generator.of(ARMS[key].parts[1]) for key in ("hb_da", "hb_da_32", "hb_da_128", "hb_da_base")}
    assert [generator.rank for generator in ranks.values()][:3] == [8, 32, 128]
    assert [generator.site for generator in ranks.values()] == ["A", "A", "A", None]
    assert {(key, "es_da_steps") for key in ranks} <= set(PAIRS)
    assert Generator.of("SYN_B") == Generator("B", 8)
    with pytest.raises(ValueError, match="names no synthetic set"):
        Generator.of("SYN_C")


def test_the_table_of_differences_names_both_arms_and_leaves_out_what_was_not_trained():
    rows = [
        {"network": "n", "arm": arm, "seed": seed, "steps": 9, "accuracy": value + 0.01 * seed, "auc": value}
        | {"precision": value, "recall": value, "f": value}
        for arm, value in (("es_da_steps", 0.5), ("hb_da_128", 0.6))
        for seed in range(3)
    ]
    text = tables(rows)
    (found,) = [line for line in text.splitlines() if "minus" in line]
    assert found.startswith("| n: HB + DA, rank 128 minus ES + DA, as many steps as HB | +0.100 [+0.100, +0.100]")
    by_set = [{**row, "images": name} for row in rows for name in ("Egypt", "Ghana")]
    lines = difference_table(by_set, {key: key for key in ARMS}, PAIRS).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["Egypt", "Ghana"]


@pytest.fixture
def bundle(monkeypatch):
    """Commands that would run the bundle; what they make are a file, and a store of noise."""
    commands = []

    def run(command):
        ids = dict(zip([part[2:] for part in command[4::2]], command[5::2], strict=True))
        commands.append(ids)
        folder = Path(ids["output_dir"])
        if "train_lora.json" in ids["config_file"]:
            folder.mkdir(parents=True)
            (folder / "adapter.safetensors").touch()
        elif "evaluate.json" in ids["config_file"]:
            write_json(folder / "assessment.json", {"copies": ASSESSMENT})
        else:
            rows = [{"label": label} for label in CLASSES for _ in range(int(ids["count"]))]
            writer = StoreWriter(folder, rows, shape=(1, 32, 32))
            writer.open()
            generator = torch.Generator().manual_seed(len(commands))
            for number, members in enumerate(writer.shards()):
                writer.write(number, torch.rand(len(members), 1, 32, 32, generator=generator) * 2 - 1)
            writer.close()

    monkeypatch.setattr("benchmarks.fulora.images.run", run)
    return commands


def test_one_run_trains_an_adapter_a_rank_and_draws_the_base_without_one(tmp_path, bundle):
    options = ["--networks", "ResNet18", "--arms", "es_da_steps", "hb_da", "hb_da_32", "hb_da_base", "--seeds", "1"]
    options += ["--epochs", "1", "--num-real", "30", "--num-synthetic", "30", "--num-test", "12", "--size", "32"]
    main([*options, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])
    trained = [ids for ids in bundle if "train_lora.json" in ids["config_file"]]
    assert [(ids["rank"], ids["num_train"]) for ids in trained] == [("8", "30"), ("32", "30")]
    adapters = [Path(json.loads(ids["adapter"].replace("'", '"'))[0]).parent.name if "adapter" in ids else None
                for ids in bundle if ids not in trained]  # fmt: skip
    assert adapters == ["adapter_A_8_30_100", "adapter_A_32_30_100", None]
    rows = (tmp_path / "out" / "fulora_study.csv").read_text().splitlines()
    assert len({row.split(",")[3] for row in rows[1:]}) == 1  # all for as many steps


def test_other_images_are_another_training(tmp_path):
    arms, test = {"es": Arm("ES", ("ES",))}, two_kinds(6, 1)
    done = []
    for seed in (2, 2, 3):
        study = Study(arms, {"ES": two_kinds(24, seed)}, test, Recipe(1, 12), tmp_path)
        study.run(["ResNet18"], ["es"], 1)
        done.append((tmp_path / "ResNet18_es_0.json").stat().st_mtime_ns)
    assert done[0] == done[1] < done[2]


def test_the_picture_shows_every_set_and_names_its_network(tmp_path):
    network = DenseNet(2, 1, 6, init_features=4, growth_rate=2, block_config=(1,), bn_size=1).eval()
    assert torch.equal(
        network.class_layers[-1](oracle_features(two_kinds(4, 0).image, network)), network(two_kinds(4, 0).image)
    )
    caption = draw_sets(tmp_path / "tsne.png", {"real": two_kinds(8, 0), "synthetic": two_kinds(8, 1)}, {}, network)
    assert "the bundle's oracle, a DenseNet" in caption
    assert "seed 0" in caption
    assert (tmp_path / "tsne.png").stat().st_size > 5000


def test_the_study_keeps_what_is_done_and_writes_its_tables(tmp_path, monkeypatch):
    options = ["--networks", "ResNet18", "--arms", "es", "es_da", "--seeds", "2", "--epochs", "1", "--num-real", "30"]
    options += ["--num-test", "12", "--size", "32", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    main(options)
    page = (tmp_path / "out" / "fulora_study.md").read_text()
    assert "ES + DA | 2 |" in page
    assert "No weights of ImageNet" in page
    first = (tmp_path / "out" / "fulora_study.csv").read_text()
    monkeypatch.setattr("benchmarks.fulora.study.train", None)  # nothing is trained again
    main(options)
    assert (tmp_path / "out" / "fulora_study.csv").read_text() == first


def share(value, count=40):
    return {"share": value, "interval": [value / 2, value], "count": count}


ASSESSMENT = {
    "threshold": 0.9,
    "false_alarms": share(0.05, 20),
    "recall": {"identical": share(1.0, 20), "other speckle": share(0.8, 20)},
    "samples_that_are_copies": share(0.1),
    "training_images_copied": share(0.2, 20),
}


def test_copies_are_counted_for_every_training_and_once_for_the_base(tmp_path, bundle):
    options = ["--kinds", "base", "adapter", "--sizes", "20", "50", "--views", "10", "30", "--num-unseen", "40"]
    options += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    count_copies(options)
    rows = list(csv.DictReader((tmp_path / "out" / "fulora_copies.csv").read_text().splitlines()))
    told = [(row["kind"], row["images"], row["views"]) for row in rows]
    assert told[:2] == [("base", "20", "0"), ("base", "50", "0")]
    assert told[2:] == [("adapter", size, views) for size in ("20", "50") for views in ("10", "30")]
    assert (rows[0]["samples_that_are_copies high"], rows[0]["recall other speckle"]) == ("0.1", "0.8")
    page = (tmp_path / "out" / "fulora_copies.md").read_text()
    assert "| adapter | 50 | 30 | 0.100 [0.050, 0.100] | 0.200 [0.100, 0.200] |" in page
    assert "| 20 | 0.900 | 1.000 [0.500, 1.000] | 0.800 [0.400, 0.800] | 0.050 [0.025, 0.050] |" in page
    looked = [ids for ids in bundle if "evaluate.json" in ids["config_file"]]
    assert {ids["training_seed"] for ids in looked} == {"12"}  # the images that the adapters of site B see
    assert [ids["num_training_images"] for ids in looked] == ["20", "50", "20", "20", "50", "50"]
    done = len(bundle)
    count_copies(options)
    assert len(bundle) == done


def test_the_paired_planes_of_the_copy_detector_are_those_that_an_adapter_sees():
    given = {"seed": SEEDS["B"], "size": (32, 32), **phantom_options("B")}
    seen, again = PlanesDataset("train", 3, **given), PairedPlanesDataset("train", 3, **given)
    for index in range(3):
        torch.testing.assert_close(seen[index]["image"], again[index]["image"])
    longer = PlanesDataset("train", 5, **given)  # the first of the real images
    torch.testing.assert_close(seen[2]["image"], longer[2]["image"])


def real_planes(folder, countries=("Ghana", "Egypt"), brains=30):
    """Write a folder of noise: Spanish brains, two of each subject, other planes, and planes of two countries."""
    rows = [("FETAL_PLANES_DB", "Fetal brain", f"s{index // 2}", "Spain") for index in range(2 * brains)]
    others = [plane for plane in LABELS if plane != "Fetal brain"]
    rows += [("FETAL_PLANES_DB", plane, f"o{index}", "Spain") for index, plane in enumerate(others)]
    rows += [("HC18", "Fetal brain", "h", "Netherlands"), ("FETAL_PLANES_DB", "Maternal cervix", "c", "Spain")]
    rows += [
        ("AFRICAN_PLANES", plane, f"{country}{index // 2}", country)
        for country in countries
        for index, plane in enumerate([name for name in LABELS if name != "Other"] * 2)
    ]
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "source", "plane", "subject", "country"])
        for index, row in enumerate(rows):
            file = f"images/{index}.png"
            Image.fromarray(noise.integers(0, 255, (48, 64), dtype=np.uint8)).save(folder / file)
            writer.writerow([file, *row])
    return folder


def test_spanish_brains_are_at_most_twenty_of_one_subject_each(tmp_path):
    planes = read_planes(real_planes(tmp_path / "data"))
    chosen, spare = spanish(planes)
    brains = [plane for plane in chosen if plane.label == 1]
    assert len(brains) == len({plane.subject for plane in brains}) == 20
    assert {plane.label for plane in chosen} == {0, 1, 2, 3, 5}
    assert {plane.source for plane in chosen} == {"FETAL_PLANES_DB"}
    assert len(spare) == 10
    assert not {plane.subject for plane in spare} & {plane.subject for plane in chosen}


def test_a_fold_leaves_out_a_country_with_all_its_subjects(tmp_path):
    planes = african(read_planes(real_planes(tmp_path / "data")))
    train, test = without(planes, "Ghana")
    assert {plane.country for plane in train} == {"Egypt"}
    assert len(train) + len(test) == len(planes)
    moved = [*planes, replace(planes[0], country="Malawi")]
    with pytest.raises(ValueError, match="1 subjects are from Ghana and from elsewhere"):
        without(moved, "Ghana")


def test_predictions_are_scored_by_country_and_together(tmp_path):
    planes = african(read_planes(real_planes(tmp_path / "data")))
    right = torch.eye(6)[[plane.label for plane in planes]]
    wrong = right.roll(1, 1)
    ghana = torch.tensor([plane.country == "Ghana" for plane in planes])
    mixed = torch.where(ghana[:, None], right, wrong)
    rows = rows_by_country([Result("n", "es", 0, 5, mixed)], planes)
    found = {row["images"]: (row["accuracy"], row["num_images"], row["num_subjects"]) for row in rows}
    assert found == {"all": (0.5, 16, 8), "Egypt": (0.0, 8, 4), "Ghana": (1.0, 8, 4)}


def test_the_real_study_trains_one_adapter_with_the_prompts_and_tests_every_country(tmp_path, bundle):
    data = real_planes(tmp_path / "data")
    options = ["--data", str(data), "--networks", "MobileNetV2", "--arms", "es_da_steps", "hb_da", "--seeds", "1"]
    options += ["--epochs", "1", "--num-synthetic", "10", "--size", "32"]
    study_real([*options, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])
    (trained,) = [ids for ids in bundle if "train_lora.json" in ids["config_file"]]
    table = list(csv.DictReader(Path(trained["datalist"]).read_text().splitlines()))
    assert {row["caption"] for row in table if row["label"] == "5"} == {"a photo of other fetal plane"}
    assert {row["split"] for row in table} == {"train", "val"}
    rows = list(csv.DictReader((tmp_path / "out" / "fulora_real.csv").read_text().splitlines()))
    assert {row["images"] for row in rows if row["part"] == "countries"} == {"all", "Egypt", "Ghana"}
    page = (tmp_path / "out" / "fulora_real.md").read_text()
    assert "MobileNetV2: HB + DA minus real + DA, as many steps as HB | Ghana |" in page
    assert "Africa: 16 images of 8 subjects" in page
    assert str(data) not in page
