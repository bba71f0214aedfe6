# SPDX-License-Identifier: Apache-2.0
"""VALD-MD on real chest radiographs: split by subject, fine-tune, explain what nothing was trained on, and measure.

``python -m benchmarks.valdmd.real --dataset_dir "$DATA/cxr_pneumonia" --dicom_dir "$DATA/dicom_zoo/cr"`` does it all.
Whatever is done already is kept, so that a killed run goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from pathlib import Path

import torch

from benchmarks.counterfactual.environment import describe_run
from benchmarks.counterfactual.figure import draw_sheet
from benchmarks.counterfactual.run import Setup
from benchmarks.counterfactual.tables import insert_or_write, write_csv
from benchmarks.valdmd.real_cases import markdown, run_bundle, write_cases
from benchmarks.valdmd.real_evaluate import axiom_section, load_task, method_section, network_section
from benchmarks.valdmd.real_sets import CLASSES, PROMPTS, Trained, at_most, prepare, train
from benchmarks.valdmd.sections import Section
from medcf.networks.feature_extractors import feature_extractor

__all__ = ["STUDIES", "main"]

logger = logging.getLogger("benchmarks.valdmd.real")

PAGE = "valdmd.md"
STUDIES = ("networks", "methods", "axioms", "cases")
HANDFUL = 3  # of each class


def main(arguments: list[str] | None = None) -> None:
    """Run the study."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    work = options.work.resolve() / "valdmd_real"  # the bundle takes relative paths in a table for those of its folder
    counts = prepare(options.dataset_dir, work / "images.csv", options.seed)
    logger.info("%s", ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    trained = train(work / "images.csv", work, at_most(options.iterations), options.threads)
    for study in options.study:
        if study == "cases":
            _write_cases(options, arguments, trained)
        else:
            _write(options, arguments, study, _section(options, study, trained), _told(counts))


def _section(options: argparse.Namespace, study: str, trained: Trained) -> Section:
    published = {"inception": feature_extractor("inception", *options.inception)} if options.inception else {}
    task = load_task(trained, options.count, published)
    setup, work = Setup(threads=options.threads, seed=options.seed), trained.models.parent / "results"
    if study == "networks":
        return network_section(task)
    if study == "axioms":
        return axiom_section(task, setup, options.axiom_count)
    section = method_section(task, setup, work)
    shown, results = zip(*section.pictures, strict=True)
    draw_sheet(work / "methods.png", task.cases, shown, results)
    logger.info("Wrote %s; it shows real images and stays with you.", work / "methods.png")
    return section


def _write(options: argparse.Namespace, arguments: list[str], study: str, section: Section, told: str) -> None:
    stem = f"valdmd_real_{study}"
    write_csv(options.out / f"{stem}.csv", section.labels, section.rows)
    run = describe_run("benchmarks.valdmd.real", arguments, "cpu", options.threads, stem)
    text = f"{section.markdown()}\n{told} {run}"
    insert_or_write(options.out / PAGE, f"real_{study}", text, stem, f"VALD-MD on real radiographs: {study}")
    sys.stdout.write(section.markdown() + "\n")


def _write_cases(options: argparse.Namespace, arguments: list[str], trained: Trained) -> None:
    """Run the bundle's command on a handful of radiographs, by both weights, and on DICOM files where given."""
    root = trained.models.parent
    own = {"models_dir": trained.models, "class_prompts": list(PROMPTS)}
    handful = {"datalist": _handful(trained.table, root / "handful.csv")}
    runs = [("radiographs", "the bundle's", handful), ("radiographs", "fine-tuned", handful | own)]
    if options.dicom_dir is not None:
        runs.append(("DICOM", "the bundle's", {"dataset_dir": options.dicom_dir.resolve()}))
    rows = []
    for number, (images, weights, ids) in enumerate(runs):
        rows += run_bundle(images, weights, ids, root / f"cases_{number}", options.threads)
    stem = "valdmd_real_cases"
    write_cases(options.out / f"{stem}.csv", rows)
    run = describe_run("benchmarks.valdmd.real", arguments, "cpu", options.threads, stem)
    text = f"{markdown(rows)}\n{run}"
    insert_or_write(options.out / PAGE, "real_cases", text, stem, "VALD-MD on real radiographs: case by case")
    sys.stdout.write(markdown(rows) + "\n")


def _handful(table: Path, path: Path) -> Path:
    """Write a table of the first held-out radiographs of each class, without their labels."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "case"])
        for name in CLASSES:
            writer.writerows([row["file"], row["case"]] for row in [r for r in rows if r["label"] == name][:HANDFUL])
    return path


def _told(counts: dict[str, int]) -> str:
    def numbers(split: str) -> str:
        return " + ".join(str(counts.get(f"{split}, {name}", 0)) for name in CLASSES)

    splits = ", ".join(f"{split} {numbers(split)}" for split in ("train", "oracle", "val", "test"))
    return f"Images ({' + '.join(CLASSES)}): {splits}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.valdmd.real", description=__doc__)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with labels.csv and images")
    parser.add_argument("--dicom_dir", type=Path, help="folder of DICOM radiographs for the bundle's default command")
    parser.add_argument("--study", nargs="+", choices=STUDIES, default=list(STUDIES), help="default: all")
    parser.add_argument("--count", type=int, default=56, help="radiographs with pneumonia to explain (default 56)")
    parser.add_argument("--axiom_count", type=int, default=8, help="radiographs for the axioms (default 8)")
    parser.add_argument("--iterations", type=int, help="no training longer than this, to try the command out")
    parser.add_argument("--inception", nargs="+", metavar=("FILE", "SHA256"), help="weights of InceptionV3 for FID")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of all noise in explanations")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder for tables and page")
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks"), help="folder for weights and results")
    return parser


if __name__ == "__main__":
    main()
