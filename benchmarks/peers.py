"""Two peers at their own work: kaiko-eva with a frozen network, timm's train.py in fine-tuning.

For CPUs. Each peer runs and times itself in its own process, so imports are not counted. A peer
whose option is not given is not timed; then ours is compared with itself.

**Frozen** (``--eva``: an interpreter that has kaiko-eva 0.4.5 with its extra "vision", and torch,
torchvision, timm and Pillow in the versions of this one). ViT-S/16 with random weights at 224 px,
400 image files, two classes. eva has the same plan as ours: embed once, then train a linear head.
``eva_study.py`` states its settings. What it leaves out: the choice of a regularisation, and
intervals over patients (it gives the standard deviation over runs on the same split). What ours
leaves out: checkpoints and curves of the head's training. Two further costs are in eva's time: the
process that writes embeddings imports eva, and each embedding is a file. In its own configurations
eva trains the head five times. Here it does so once; the line with five heads is calculated: it
adds the time of the head four times.
The labels are random. eva stops 70 epochs after its best epoch, so real labels may take longer.
Ours is timed as it is ("auto": bfloat16 if the CPU has it and the embeddings change little) and in
float32, as eva computes.

**Fine-tuning** (``--timm``: train.py of timm's repository; timm's package lacks it). Images a
second in float32, ViT-S/16 and ResNet50, batches of 16. train.py gets AdamW, our weight decay and
our bound on the gradient's norm, and two workers. All else is its default: a random crop, a mirror
image, colours, label smoothing. The second of two epochs counts, by its own log, without validation
and checkpoints. Ours is `finetune.train` with its own augmentation, on packed images. train.py
decodes every image in every epoch. Ours decodes once for a study, which is not in this time.
``finetuning.py`` has an eager loop with the same augmentation as ours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import finetuning
import frozen_study
import harness
import numpy as np
import pandas as pd

from medlib.core import backbones

SIZE, BATCH, HEADS, STEPS = 224, 16, 5, 12500
FROZEN = ("vit_small-random", "universal/vit_small_patch16_224_random", 384)
FROZEN_QUICK = ("vit_tiny-random", "universal/vit_tiny_patch16_224_random", 192)
TRAINED = {"vit_small-random": "ViT-S/16", "resnet50-random": "ResNet50"}
SPEED = re.compile(r"Train: 1 \[.*?/s +\(.*?, +([0-9.]+)/s\)")


def called(command: list) -> str:
    """What another program printed. Raises RuntimeError with its errors if it failed."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=own)
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def eva(python: Path, rows: pd.DataFrame, data: Path, row: tuple, steps: int) -> dict:
    """eva's seconds, in a new folder: it refuses embeddings that are there already."""
    with tempfile.TemporaryDirectory() as folder:
        for path in rows["path"]:
            os.link(data / path, Path(folder) / path)
        rows.to_csv(Path(folder) / "rows.csv", index=False)
        script = Path(__file__).with_name("eva_study.py")
        printed = called([python, script, folder, *row[1:], steps])
    found = next(line for line in printed.splitlines() if line.startswith('{"embedding"'))
    return json.loads(found)


def timm_epoch(script: Path, backbone: str, folder: Path, size: int, batch: int, n: int) -> float:
    """The seconds that the second epoch of ``n`` images takes in timm's train.py."""
    wanted = {
        "data-dir": folder,
        "output": folder / "output",
        "model": backbones.get(backbone).architecture,
        "num-classes": finetuning.CLASSES,
        "device": harness.DEVICE,
        "workers": 2,
        "batch-size": batch,
        "opt": "adamw",
        "weight-decay": 0.05,
        "clip-grad": 1,
        "lr": finetuning.RATE,
        "epochs": 2,
        "warmup-epochs": 0,
        "log-interval": 1,
    }
    options = [word for name, value in wanted.items() for word in (f"--{name}", value)]
    printed = called([sys.executable, script, "--input-size", 3, size, size, *options])
    return n / float(SPEED.findall(printed)[-1])


def sorted_by_class(paths: list[Path], folder: Path) -> None:
    """Make the folders that train.py reads: ``<side of the split>/<class>/``."""
    for number, path in enumerate(paths):
        for side in ("train", "validation") if number < 2 else ("train",):
            place = folder / side / str(number % finetuning.CLASSES)
            place.mkdir(parents=True, exist_ok=True)
            os.link(path, place / path.name)


def report(
    name: str, ours: np.ndarray, peers: Mapping, value: float, unit: str, quick: bool
) -> None:
    """A line for each peer; without one, ours against itself, which is not kept."""
    shown = {"target": None, "value": value, "unit": unit}
    for peer, taken in (peers or {"itself: no peer was given": ours}).items():
        harness.report(name, peer, taken / ours, quick=quick or not peers, **shown)


def frozen(options: argparse.Namespace) -> None:
    n = 20 if options.quick else 400
    row = FROZEN_QUICK if options.quick else FROZEN
    spent = []

    def peer() -> float:
        spent.append(eva(options.eva, rows, data, row, 20 if options.quick else STEPS))
        return spent[-1]["embedding"] + spent[-1]["head"]

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        rows = frozen_study.listed(harness.photographs(data, n, (600, 450)))
        contestants = {
            precision: lambda precision=precision: frozen_study.our_way(
                row[0], rows, data, precision
            )
            for precision in ("auto", "float32")
        }
        if options.eva:
            contestants["eva"] = peer
        times = harness.interleaved(contestants, options.repeats)
    embedding, head = (np.array([each[part] for each in spent]) for part in ("embedding", "head"))
    peers = {}
    if options.eva:
        several = f"kaiko-eva, {HEADS} heads (calculated)"
        peers = {"kaiko-eva, one head": times["eva"], several: times["eva"] + (HEADS - 1) * head}
        print(
            f"    eva: {np.median(embedding):.1f} s for embeddings, {np.median(head):.1f} s a head"
        )
    for precision in ("auto", "float32"):
        ours, name = times[precision], f"frozen study, ViT-S/16, {n} images, {precision}"
        report(name, ours, peers, float(np.median(ours)), "s", options.quick)


def trained(options: argparse.Namespace) -> None:
    size, batch, steps = (32, 4, 2) if options.quick else (SIZE, BATCH, 3)
    table = {"micro_resnet-random": "Micro-ResNet"} if options.quick else TRAINED
    n = batch * steps
    for backbone, title in table.items():
        ours = finetuning.our_epoch(backbone, size, batch, steps)
        ours()  # touches the memory once; the peer's first epoch does the same

        def peer(backbone=backbone) -> float:
            with tempfile.TemporaryDirectory() as folder:
                data = Path(folder)
                paths = harness.photographs(data / "all", n, (600, 450))
                sorted_by_class(paths, data)
                return timm_epoch(options.timm, backbone, data, size, batch, n)

        contestants = {"ours": ours} | ({"timm": peer} if options.timm else {})
        times = harness.interleaved(contestants, options.repeats)
        peers = {"timm's train.py": times["timm"]} if options.timm else {}
        speed = float(n / np.median(times["ours"]))
        report(f"fine-tuning, {title}", times["ours"], peers, speed, "images/s", options.quick)


def main() -> None:
    options = harness.arguments(
        __doc__,
        peers={"eva": "the interpreter that has kaiko-eva", "timm": "timm's train.py"},
    )
    for name in ("eva", "timm"):
        if not getattr(options, name):
            print(f"The peer is not timed: --{name} is not given. Ours runs against itself.")
    frozen(options)
    trained(options)


if __name__ == "__main__":
    main()
