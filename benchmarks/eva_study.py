"""kaiko-eva's work for ``peers.py``, in its own environment: embeddings, then a linear head.

Arguments: a folder that holds the images and ``rows.csv`` (path, label, split), the name of a
backbone, the length of its embedding, and the largest number of steps. The settings are those of
eva's own configuration for a task of two classes (MHIST, offline), with three exceptions. It gets
the test images as well, the head is trained once instead of five times, and its loaders have no
workers. (Each loader would start four workers anew, and each of them would import eva anew.)
The last line that it prints has the seconds of both parts and the test metrics.
"""

import csv
import json
import sys
import time
from pathlib import Path

import torch
from eva import DataLoader, DataloadersSchema, DataModule, DatasetsSchema, HeadModule, Trainer
from eva import callbacks as eva_callbacks
from eva.core import metrics
from eva.core.data import datasets
from eva.core.interface import Interface
from eva.vision.data.datasets.vision import VisionDataset
from eva.vision.data.transforms.common import ResizeAndCrop
from eva.vision.models import ModelFromRegistry
from eva.vision.utils import io
from lightning.pytorch import callbacks, loggers
from torchvision.transforms import v2

CLASSES = ["healthy", "ill"]
SIDES = ("train", "val", "test")
PATIENCE, RATE = 70, 3e-4


class Photographs(VisionDataset):
    """The image files of one side of the split, opened as eva's own data sets open theirs."""

    def __init__(self, folder: Path, side: str):
        colours = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        super().__init__(ResizeAndCrop(224, **colours))
        self.folder = folder
        with (folder / "rows.csv").open() as file:
            self.rows = [row for row in csv.DictReader(file) if row["split"] == side]

    def __len__(self) -> int:
        return len(self.rows)

    def filename(self, index: int) -> str:
        return self.rows[index]["path"]

    def load_data(self, index: int) -> torch.Tensor:
        return io.read_image_as_tensor(str(self.folder / self.filename(index)))

    def load_target(self, index: int) -> torch.Tensor:
        return torch.tensor(CLASSES.index(self.rows[index]["label"]), dtype=torch.float32)


def study(folder: Path, backbone: str, features: int, steps: int) -> dict:
    """Seconds of the embeddings and of training and judging the head once; the test metrics."""
    start = time.perf_counter()
    embeddings, watched = folder / "embeddings", "val/BinaryBalancedAccuracy"
    best = {"monitor": watched, "mode": "max"}
    trainer = Trainer(
        default_root_dir=str(folder / "logs"),
        n_runs=1,
        max_steps=steps,
        accelerator="cpu",
        callbacks=[
            callbacks.LearningRateMonitor(logging_interval="epoch"),
            callbacks.ModelCheckpoint(filename="best", save_top_k=1, **best),
            callbacks.EarlyStopping(min_delta=0, patience=PATIENCE, **best),
            eva_callbacks.ClassificationEmbeddingsWriter(
                output_dir=str(embeddings),
                backbone=ModelFromRegistry(backbone),
                dataloader_idx_map=dict(enumerate(SIDES)),
            ),
        ],
        logger=[loggers.TensorBoardLogger(str(folder / "logs"), name="")],
    )
    model = HeadModule(
        head=torch.nn.Linear(features, 1),
        criterion=torch.nn.BCEWithLogitsLoss(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=RATE),
        lr_scheduler=lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps),
        metrics=metrics.MetricsSchema(
            common=[metrics.AverageLoss(), metrics.BinaryClassificationMetrics()]
        ),
    )
    own = {"num_workers": 0, "persistent_workers": False, "prefetch_factor": None}
    embedded = {
        side: datasets.EmbeddingsClassificationDataset(
            root=str(embeddings),
            manifest_file="manifest.csv",
            split=side,
            target_transforms=v2.ToDtype(torch.float32),
        )
        for side in SIDES
    }
    data = DataModule(
        DatasetsSchema(**embedded, predict=[Photographs(folder, side) for side in SIDES]),
        DataloadersSchema(
            train=DataLoader(batch_size=256, shuffle=True, **own),
            val=DataLoader(batch_size=256, **own),
            test=DataLoader(batch_size=256, **own),
            predict=DataLoader(batch_size=64, **own),
        ),
    )
    Interface().predict(trainer, model, data, enable_clone=True)
    middle = time.perf_counter()
    Interface().fit(trainer, model, data)
    end = time.perf_counter()
    (results,) = (folder / "logs").rglob("results.json")
    found = json.loads(results.read_text())["metrics"]
    return {"embedding": middle - start, "head": end - middle, "metrics": found}


if __name__ == "__main__":
    print(json.dumps(study(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))))
