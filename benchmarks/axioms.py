# SPDX-License-Identifier: Apache-2.0
"""The axioms on anybody's images, with a bundle's own weights: without a truth, without labels, without a training.

``python -m benchmarks.axioms --bundle controlcg --dataset_dir FOLDER --name mine --count 4`` reads the images as the
bundle's job does, explains them there and back, and writes ``axioms_mine.csv`` and a section of ``axioms.md``. Without
``--dataset_dir`` it takes the bundle's demo phantoms. The class of an image is the one that f gives it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from benchmarks.command_line import study_parser
from benchmarks.counterfactual.axiom_study import AXIOMS, Asked, axiom_figures
from benchmarks.counterfactual.environment import describe_run
from benchmarks.counterfactual.phantoms import identity_network
from benchmarks.counterfactual.rows import Row
from benchmarks.counterfactual.run import Setup
from benchmarks.counterfactual.tables import insert_or_write, markdown, write_csv
from benchmarks.counterfactual.task import Cases, Recipe, apply
from medcf.bundle import bundle_folder
from medcf.data.image import digest
from medcf.inference import list_cases
from medcf.inference.cases import CaseDataset
from medcf.registry import METHODS, lookup
from medcf.runtime.errors import Failure

__all__ = ["Folder", "main", "method_rows", "read_folder"]

logger = logging.getLogger(__name__)

PAGE, BATCH = "axioms.md", 8


@dataclass(frozen=True)
class Folder:
    """The images of a folder on a bundle's grid.

    Attributes:
        asked: the images with the classes that f gives them.
        failures: files that could not be read, and why.
        novel: images (N,) outside the distribution that the bundle was calibrated on.
        class_names: names of the classes 0 and 1.
    """

    asked: Asked
    failures: list[Failure]
    novel: Tensor
    class_names: list[str]

    def describe(self) -> str:
        """Return how many images there are, of which classes, and how many of them are strange to the networks."""
        count, own = len(self.asked.own), self.asked.own
        classes = ", ".join(f"{int((own == k).sum())} {name}" for k, name in enumerate(self.class_names))
        lost = f"; {len(self.failures)} could not be read" if self.failures else ""
        strange = int(self.novel.sum())
        return (
            f"{count} images{lost}. Classes by f: {classes}. "
            f"Out of distribution by the bundle's novelty: {strange} of {count}."
        )


def read_folder(
    recipe: Recipe, dataset_dir: Path | None, count: int, work: Path, *, datalist: Path | None = None
) -> Folder:
    """Read images as the bundle's job does, spread evenly over the list of the folder.

    Args:
        recipe: the bundle.
        dataset_dir: folder of images or volumes; without it or a table, the bundle's demo phantoms.
        count: number of images.
        work: folder for the demo phantoms.
        datalist: table of images, see `medcf.data.find_cases`; its column ``subject`` groups them.

    Raises:
        FileNotFoundError: if the folder or the table does not exist.
        ValueError: if no image can be read.
    """
    config = recipe.open({"device": "cpu"})
    get = config.get_parsed_content
    listed = list_cases(dataset_dir, datalist, work, {**get("listing"), "demo_count": count})
    chosen = listed.cases[:: max(1, len(listed.cases) // count)][:count]
    items: list[Any] = list(CaseDataset(chosen, get("preprocessing")))
    failures = [*listed.failures, *(item for item in items if isinstance(item, Failure))]
    for failure in failures:
        logger.warning("%s: %s. %s", Path(failure.file).name, failure.reason, failure.remedy)
    read = [(case, item) for case, item in zip(chosen, items, strict=True) if not isinstance(item, Failure)]
    if not read:
        raise ValueError(f"None of the {len(items)} images of {dataset_dir or datalist} can be read: see above.")
    image = torch.stack([item["image"].as_subclass(Tensor) for _, item in read])
    cases = Cases(
        image,  # as in the job, the content seeds the noise
        [item["image"].meta.get("sha256") or digest(item["image"].numpy()) for _, item in read],
        [str(case.columns.get("subject", case.id)) for case, _ in read],
    )
    classifier, detector = get("classifier").eval(), get("novelty")
    own = apply(classifier, image, BATCH).argmax(1)
    novelty = apply(lambda part: detector(part)["novelty"], image, BATCH)
    asked = Asked(recipe, cases, own, lambda part: apply(classifier, part, BATCH), *_recovery(recipe.bundle))
    return Folder(asked, failures, ~(novelty <= 1), list(get("class_names")))


def _recovery(bundle: str) -> tuple[Any, Sequence[float]]:
    """Return what recovers other factors from images, and their spread; a bundle without identity network: None."""
    if not (bundle_folder(bundle) / "models" / "identity.pt").is_file():
        return None, ()
    network, _ = identity_network(bundle)
    return lambda images: network(images)["parameters"], network.std.tolist()


def method_rows(config: ConfigParser, names: Sequence[str] | None) -> list[Row]:
    """Return the rows of methods that a bundle has options for: its own one and doing nothing, if none are named.

    Raises:
        ValueError: a method that the bundle has no options for.
    """
    known = list(config["method_options"])
    if unknown := sorted(set(names or ()) - set(known)):
        raise ValueError(f"Unknown methods {', '.join(unknown)}: the bundle has {', '.join(known)}.")
    wanted = names or [config["method"], "unchanged"]
    return [Row(name, getattr(lookup(METHODS, name), "title", name), {"method": name}) for name in wanted]


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    setup = Setup(options.device, options.threads, options.seed)
    torch.set_num_threads(setup.threads)
    recipe, work = Recipe(options.bundle, ("inference.json",), dict(options.set)), options.work / options.name
    rows = method_rows(recipe.open(), options.rows)
    folder = read_folder(recipe, options.dataset_dir, options.count, work, datalist=options.datalist)
    figures = []
    for row in rows:
        figures.append(axiom_figures(folder.asked, row, setup, work))
        logger.info("%s: axioms measured", row.label)
    stem, labels = f"axioms_{options.name}", [row.label for row in rows]
    write_csv(options.out / f"{stem}.csv", labels, figures)
    tables = markdown(labels, figures, AXIOMS)
    run = describe_run("benchmarks.axioms", arguments, options.device, options.threads, stem)
    text = f"{tables}\n{folder.describe()} {run}"
    insert_or_write(options.out / PAGE, options.name, text, stem, f"Axioms: {options.name}")
    sys.stdout.write(f"{tables}\n{folder.describe()}\n")


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("benchmarks.axioms", __doc__, bundle="diffice")
    parser.add_argument("--dataset_dir", type=Path, help="folder of images or volumes (default: demo phantoms)")
    parser.add_argument("--datalist", type=Path, help="table of images; its column subject groups them")
    parser.add_argument("--name", default="demo", help="name of the CSV and of the page's section (default demo)")
    parser.add_argument("--count", type=int, default=8, help="number of images, spread over the folder (default 8)")
    return parser


if __name__ == "__main__":
    main()
