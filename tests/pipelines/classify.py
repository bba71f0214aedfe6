# SPDX-License-Identifier: Apache-2.0
"""Train a classifier as MONAI's tutorials do: a folder per class, two splits, a small DenseNet. Nothing of medcf."""

import argparse
import json
import sys
from pathlib import Path

import torch
from monai import data
from monai.networks.nets import DenseNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandFlipd,
    Resized,
    ScaleIntensityd,
)
from monai.utils import set_determinism


def items(folder):
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    return [{"image": str(file), "label": n} for n, path in enumerate(classes) for file in sorted(path.glob("*.*"))]


def main(options):
    set_determinism(0)
    load = [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        ScaleIntensityd("image"),
        Resized("image", options.size),
    ]
    augment = [
        RandFlipd("image", prob=0.5, spatial_axis=0),
    ]
    train, test = items(options.data / "train"), items(options.data / "test")
    if options.dataset == "CacheDataset":
        dataset = data.CacheDataset(train, Compose(load + augment), progress=False)
    elif options.dataset == "PersistentDataset":
        dataset = data.PersistentDataset(train, Compose(load + augment), cache_dir=options.data / "cache")
    else:
        dataset = data.Dataset(train, Compose(load + augment))
    loader_class = getattr(data, options.loader)
    loader = loader_class(dataset, batch_size=8, shuffle=True, num_workers=options.workers)
    network = DenseNet(len(options.size), 1, 2, init_features=8, growth_rate=8, block_config=(2, 2))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    synthetic = seen = 0
    network.train()
    for _ in range(options.epochs):
        for batch in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(batch["image"]), batch["label"]).backward()
            optimizer.step()
            seen += len(batch["label"])
            synthetic += int(torch.as_tensor(batch.get("synthetic", 0)).sum())
    network.eval()
    with torch.no_grad():
        batches = list(data.DataLoader(data.Dataset(test, Compose(load)), batch_size=32))
        hits = sum(int((network(batch["image"]).argmax(1) == batch["label"]).sum()) for batch in batches)
    print(json.dumps({"accuracy": hits / max(len(test), 1), "seen": seen, "synthetic": synthetic}))


parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--dataset", default="Dataset")
parser.add_argument("--loader", default="DataLoader")
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--size", type=int, nargs="+", default=[24, 24])
if __name__ == "__main__":
    main(parser.parse_args(sys.argv[1:]))
