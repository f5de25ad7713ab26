"""The frozen study of one task and one backbone, from image files to intervals.

The peer does what the paper's released code does. In each of 100 epochs every training and
validation image is opened, decoded, resized and passed through the frozen network (batches of 32,
no loader workers) to train one linear layer with Adam. Then the test images are predicted one by
one, and 5000 resamples go through scikit-learn in a loop. One epoch and 100 resamples are measured
and scaled, since every epoch takes the same time.

Ours decodes once, embeds once, fits the linear head at every regularisation, chooses one on the
validation images, predicts, and draws 5000 resamples. All of this is measured in full. Training
again after redraws of the patients is left out, since the released code does not do it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import harness
import numpy as np
import pandas as pd
import torch
from sklearn import metrics as sk
from torch import nn

from medlib.core import backbones, heads, metrics
from medlib.core.settings import Extraction
from medlib.data import embeddings, manifest, packing, packs
from medlib.files import file_sha256
from medlib.stats import bootstrap, prediction

BACKBONES = {"dinov2_small-random": "DINOv2 ViT-S/14", "resnet50-random": "ResNet50"}
SIZE, EPOCHS, RESAMPLES = 224, 100, 5000
CLASSES = ["healthy", "ill"]


def their_way(name: str, rows: pd.DataFrame, data: Path, epochs: int, resamples: int) -> float:
    """Seconds of the released code's way, scaled from that of these epochs and resamples."""
    row = backbones.get(name)
    model = harness.timm_model(row, SIZE).requires_grad_(False)
    transform = harness.resized(row, SIZE)
    sides = {side: rows[rows["split"] == side] for side in ("train", "val", "test")}
    loaders = {}
    for side, part in sides.items():
        labels = [CLASSES.index(label) for label in part["label"]]
        files = harness.Files([data / path for path in part["path"]], labels, transform)
        loaders[side] = torch.utils.data.DataLoader(
            files, batch_size=1 if side == "test" else 32, shuffle=side == "train"
        )
    head = nn.LazyLinear(len(CLASSES)).to(harness.DEVICE)
    head(model(torch.zeros(1, 3, SIZE, SIZE, device=harness.DEVICE)))
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-4)

    def epoch() -> None:
        for batch, labels in loaders["train"]:
            logits = head(model(batch.to(harness.DEVICE)))
            loss = nn.functional.cross_entropy(logits, labels.to(harness.DEVICE))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            for batch, _ in loaders["val"]:
                head(model(batch.to(harness.DEVICE))).argmax(1).cpu()

    def test() -> np.ndarray:
        with torch.no_grad():
            logits = [head(model(batch.to(harness.DEVICE))) for batch, _ in loaders["test"]]
        return torch.cat(logits).softmax(1).cpu().numpy()

    trained = harness.seconds(lambda: [epoch() for _ in range(epochs)]) * EPOCHS / epochs
    start = time.perf_counter()
    proba = test()
    tested = time.perf_counter() - start
    truth = np.array(loaders["test"].dataset.labels)
    intervals = harness.seconds(lambda: loop(truth, proba, resamples)) * RESAMPLES / resamples
    return trained + tested + intervals


def loop(truth: np.ndarray, proba: np.ndarray, resamples: int) -> None:
    """Resamples of the test images, each through scikit-learn's metrics."""
    rng = np.random.default_rng(0)
    for _ in range(resamples):
        drawn = rng.integers(len(truth), size=len(truth))
        called = proba[drawn].argmax(1)
        sk.accuracy_score(truth[drawn], called)
        for score in (sk.precision_score, sk.recall_score, sk.f1_score):
            score(truth[drawn], called, average="weighted", zero_division=0)
        sk.roc_auc_score(truth[drawn], proba[drawn, 1])


def our_way(name: str, rows: pd.DataFrame, data: Path, precision: str = "auto") -> pd.DataFrame:
    """Every metric with its interval, by the functions that notebooks 01, 02, 03 and 05 call."""
    settings = Extraction(precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        interpolation = backbones.get(name).preprocessing["interpolation"]
        packed = Path(folder) / "pack"
        pack = packing.pack(rows, data, {packed: packs.Drawn(SIZE, interpolation)})[packed]
        made = embeddings.extract(pack, name, Path(folder) / "features", settings=settings)
        y, samples = metrics.codes(made.index["label"], CLASSES), made.index["sample_id"]
        parts = manifest.rotations(made.index)
        runs = [("linear", 0, parts)]
        ((_, predicted, *_),) = heads.sweep(made.embeddings, y, samples, runs, n_classes=2)
        frame = prediction.tables(made.index, parts, predicted, CLASSES)["predictions.csv"]
        draws = bootstrap.bootstrap(frame, CLASSES, RESAMPLES)
        points, rarest = prediction.point(frame, CLASSES), prediction.rarest(frame)
        left_out = bootstrap.jackknife(frame, CLASSES, [n for n in draws if bootstrap.takes_bca(n)])
        empty, intervals = np.array([]), {}
        for metric, drawn in draws.items():
            apart = left_out.get(metric, empty)
            intervals[metric] = bootstrap.interval(metric, points[metric], drawn, apart, rarest)
        return pd.DataFrame(intervals)


def listed(paths: list[Path]) -> pd.DataFrame:
    """A manifest of image files: 60 % train, 20 % val, 20 % test, both classes in each."""
    rows = pd.DataFrame({"path": [path.name for path in paths]})
    rows["sample_id"] = rows["patient_id"] = rows["path"].str.removesuffix(".jpg")
    rows["label"] = [CLASSES[number % 2] for number in range(len(paths))]
    sides = ["train", "val", "test", "train", "train"]  # two images each, one of a class
    rows["split"] = [sides[number // 2 % 5] for number in range(len(paths))]
    rows["sha256"] = [file_sha256(path) for path in paths]
    return rows


def main() -> None:
    options = harness.arguments(__doc__)
    n, epochs, resamples = (20, 1, 5) if options.quick else (400, 1, 100)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        paths = harness.photographs(data, n, (600, 450))
        rows = listed(paths)
        for name, title in list(BACKBONES.items())[1 if options.quick else 0 :]:
            contestants = {
                "ours": lambda name=name: our_way(name, rows, data),
                "peer": lambda name=name: their_way(name, rows, data, epochs, resamples),
            }
            harness.contest(
                f"frozen study, {title}, {n} images",
                "the released code's way, 100 epochs",
                contestants,
                options.repeats,
                target=110,
                quick=options.quick,
            )


if __name__ == "__main__":
    main()
