# SPDX-License-Identifier: Apache-2.0
"""A store of synthetic images: killed, continued, sharded, read."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medcf.data import StoreWriter, SyntheticStore
from medcf.runtime.subjects import read_subjects, subject_key, write_subjects
from medcf.schedulers import create_scheduler
from medcf.synthesis import Generation, Sampler, spread_requests
from tests.inferers.conftest import GaussianClasses


@pytest.fixture
def generation(gaussian_network, tmp_path):
    """Build the generation of ten images in shards of four."""
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    write_subjects(weights, [subject_key(7), subject_key("patient 8")])

    def build(folder="store", seed=0, **options):
        network = GaussianClasses(gaussian_network(mean, 0.2) for mean in (0.4, -0.4, 0.0))
        scheduler = create_scheduler("unipc", prediction_type="epsilon")
        sampler = Sampler(
            network, scheduler, (1, 8, 8), num_classes=2, null_class_labels=2, num_inference_steps=4, seed=seed
        )
        options = {"class_names": ["dark", "bright"], "shard_size": 4, "settings": {"solver": "unipc"}, **options}
        requests = spread_requests(sampler, [0, 1], 5)
        return Generation(sampler, requests, tmp_path / folder, shape=(1, 8, 8), weights={"model": weights}, **options)

    return build


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".npy", ".csv")}


def test_the_store_holds_what_the_sampler_drew_to_half_a_step_of_gray(generation):
    job = generation()
    store = job.run()
    drawn = job.sampler.draw(job.requests, range(10))
    read = torch.stack([store[index]["image"] for index in range(10)])
    assert (read - drawn).abs().max() <= 1 / 255 + 1e-6
    assert read.dtype == torch.float32
    item = store[3]
    assert (int(item["label"]), item["class_name"], item["synthetic"], item["seed"]) == (1, "bright", True, 0)
    assert store.labels == [0, 1] * 5
    assert len({one["case"] for one in store}) == 10


def test_half_precision_keeps_more_than_gray_levels(generation):
    job = generation(dtype="float16")
    store = job.run()
    drawn = job.sampler.draw(job.requests, range(10))
    assert (torch.stack([one["image"] for one in store]) - drawn).abs().max() < 5e-4


def test_a_killed_run_continues_and_ends_with_the_same_files(generation, tmp_path, monkeypatch):
    whole = generation("whole")
    whole.run()
    job, draw, drawn = generation("killed"), Sampler.draw, []

    def dies(self, requests, indices, progress=None):
        if drawn:
            raise KeyboardInterrupt
        drawn.extend(indices)
        return draw(self, requests, indices)

    monkeypatch.setattr(Sampler, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    with pytest.raises(ValueError, match="1 of 3 shards"):
        SyntheticStore(tmp_path / "killed")
    assert len(SyntheticStore(tmp_path / "killed", partial=True)) == 4

    def again(self, requests, indices, progress=None):
        assert not set(indices) & set(drawn)  # nothing is made twice
        return draw(self, requests, indices)

    monkeypatch.setattr(Sampler, "draw", again)
    generation("killed").run()
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_images_without_their_rows_do_not_count(generation, tmp_path):
    generation().run()
    before = content(tmp_path / "store")
    marker = tmp_path / "store" / "shards" / "00001.json"
    marker.unlink()  # killed between the two files
    (marker.with_suffix(".npy")).write_bytes(b"half")
    assert generation().writer.pending() == [1]
    generation().run()
    assert content(tmp_path / "store") == before


def test_two_processes_make_what_one_makes(generation, tmp_path, monkeypatch):
    generation("one").run()
    ready = generation("two")
    ready.writer.open()
    for rank in ("1", "0"):  # the second first: the order does not matter
        job = generation("two")
        shards = job.writer.shards()
        for number in range(len(shards))[int(rank) :: 2]:
            members = shards[number]
            job.writer.write(number, job.sampler.draw([job.requests[i] for i in members], members))
    ready.writer.close()
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize(("change", "named"), [({"seed": 1}, "rows"), ({"settings": {"solver": "x"}}, "solver")])
def test_another_generators_store_is_not_continued(generation, change, named):
    generation().run()
    with pytest.raises(ValueError, match=rf"begun with another .*{named}.*--overwrite True"):
        generation(**change).run()
    generation(overwrite=True, **change).run()


def test_settings_that_json_stores_in_another_form_are_still_the_same(generation):
    settings = {"solver": "unipc", "merging_ratio": (0.5, 0.25)}
    generation(settings=settings).run()
    assert generation(settings=settings).run().header["provenance"]["merging_ratio"] == [0.5, 0.25]


def test_a_folder_with_other_files_is_left_alone(generation, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="no store's"):
        generation(overwrite=True).run()
    assert (tmp_path / "store" / "thesis.txt").read_text() == "mine"


def test_the_manifest_tells_how_each_image_was_made(generation, tmp_path):
    generation().run()
    with (tmp_path / "store" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(10))
    assert {(row["class_name"], row["solver"], row["num_inference_steps"]) for row in rows} == {
        ("dark", "unipc", "4"),
        ("bright", "unipc", "4"),
    }
    assert len(rows[0]["model sha256"]) == 64
    header = json.loads((tmp_path / "store" / "store.json").read_text())
    assert header["notice"].startswith("SYNTHETIC")


def test_the_store_knows_whom_its_generator_saw(generation, tmp_path):
    store = generation().run()
    assert store.subjects == {subject_key(7), subject_key("patient 8")}
    assert "patient" not in json.dumps(store.header["subjects"])
    unknown = tmp_path / "unknown.pt"
    unknown.write_bytes(b"")
    assert read_subjects([tmp_path / "model.pt", unknown]) is None


def test_a_store_goes_to_workers_and_reads_the_same(generation):
    store = generation().run()
    store[0]
    copy = pickle.loads(pickle.dumps(store))
    assert all(torch.equal(one["image"], two["image"]) for one, two in zip(store, copy, strict=True))
    loader = torch.utils.data.DataLoader(store, batch_size=5, num_workers=1)
    assert torch.equal(next(iter(loader))["image"][2], store[2]["image"])


def test_the_overview_shows_bright_images_brighter(generation, tmp_path):
    generation().run()
    picture = np.asarray(Image.open(tmp_path / "store" / "overview.png").convert("L"), float)
    rows = np.split(picture[30:], 2)
    assert rows[1].mean() < rows[0].mean()  # class 0 has a mean of 0.4, class 1 of -0.4


def test_images_of_another_shape_are_refused(tmp_path):
    writer = StoreWriter(tmp_path / "store", [{"label": 0}] * 2, shape=(1, 4, 4))
    writer.open()
    with pytest.raises(ValueError, match=r"takes \(2, 1, 4, 4\)"):
        writer.write(0, torch.zeros(2, 1, 4, 5))


def rows_cut(folder):
    file = folder / "00001.json"
    file.write_text(json.dumps({"rows": json.loads(file.read_text())["rows"][:2]}))


DAMAGES = {
    "fewer rows": rows_cut,
    "no rows": lambda folder: (folder / "00001.json").write_text("{}"),
    "a list": lambda folder: (folder / "00001.json").write_text("[]"),
    "no images": lambda folder: (folder / "00001.npy").unlink(),
    "half of the images": lambda folder: (folder / "00001.npy").write_bytes((folder / "00001.npy").read_bytes()[:200]),
    "fewer images": lambda folder: np.save(folder / "00001.npy", np.zeros((2, 1, 8, 8), np.uint8)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_made_again_by_the_same_command(generation, tmp_path, damage):
    generation().run()
    before = content(tmp_path / "store")
    DAMAGES[damage](tmp_path / "store" / "shards")
    with pytest.raises(ValueError, match=r"00001.* damaged: start the command that makes the store again"):
        [item["image"] for item in SyntheticStore(tmp_path / "store")]
    assert generation().writer.pending() == [1]
    generation().run()
    assert content(tmp_path / "store") == before


@pytest.mark.parametrize("header", ["{", "[]", '{"notice": "SYNTHETIC"}'])
def test_a_damaged_header_is_named_and_the_store_can_be_started_over(generation, tmp_path, header):
    generation().run()
    before = content(tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text(header)
    with pytest.raises(ValueError, match=r"store.json is damaged: start over with --overwrite True"):
        generation().run()
    generation(overwrite=True).run()
    assert content(tmp_path / "store") == before


def test_a_run_that_made_nothing_is_not_in_the_way_of_another(generation, tmp_path):
    wrong = generation()
    wrong.writer.header["shape"] = [1, 9, 9]
    with pytest.raises(ValueError, match="Shard 0 takes"):
        wrong.run()
    generation(settings={"solver": "another"}).run()


def test_weights_that_saw_no_image_do_not_hide_whom_the_others_saw(generation, tmp_path):
    words = tmp_path / "tokenizer.json"
    words.write_text("{}")
    job = generation(trained_on_images=["model"])
    with_words = generation("other", trained_on_images=["model"])
    assert job.writer.header["subjects"] == with_words.writer.header["subjects"] is not None


def test_the_jobs_of_an_array_make_what_one_makes_and_the_last_one_ends_it(generation, tmp_path):
    generation("one").run()
    first = generation("parts", part=[1, 2])
    assert first.run() is None
    assert not (tmp_path / "parts" / "manifest.csv").exists()
    assert generation("parts", part=[1, 2]).run() is None  # nothing left for it
    assert len(generation("parts", part=[0, 2]).run()) == 10
    assert content(tmp_path / "parts") == content(tmp_path / "one")
    for part, options in (([2, 2], {}), ([-1, 2], {}), ([0, 2], {"overwrite": True})):
        with pytest.raises(ValueError, match=r"part=\[.*\]: give \[k, n\]"):
            generation("parts", part=part, **options)
