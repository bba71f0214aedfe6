# SPDX-License-Identifier: Apache-2.0
"""The experiment's parts: scores by hand, paired differences, equal numbers of steps, first weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DenseNet, resnet18
from scipy.stats import ttest_rel

from benchmarks.fulora.__main__ import ARMS, PAIRS, main, tables
from benchmarks.fulora.classifiers import CLASSIFIERS, create_classifier
from benchmarks.fulora.images import CLASSES, Generator, Images
from benchmarks.fulora.study import Arm, Study
from benchmarks.fulora.tables import difference_table, differences
from benchmarks.fulora.training import Recipe, probabilities, scores, train
from benchmarks.fulora.tsne import draw_sets, oracle_features
from medcf.data.synthetic_store import StoreWriter


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
