"""Frozen embeddings at 224 px, in images a second, against a plain loop with timm.

The peer: timm in eager mode, a DataLoader with two workers, torchvision transforms, JPEG files of
600 × 450 pixels, batches of 32. Ours: the batches, the layout and the engine that
``core.features.extract`` uses, on packed images. Both write embeddings to memory; both use all
cores. Random weights take the same time as pretrained ones. If onnxruntime and OpenVINO are
installed (``benchmarks/requirements.txt``), they run the same exported network on ready tensors.
On a CPU that has bfloat16, ours in that precision is timed against ours in float32.

On a CUDA device ours is in float16, and the peer in float32 with as many workers as there are
cores. The limit is the bfloat16 matrix rate, which is equal to that of float16. The share of the
time in which the device computes is reported as well.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
import torch
from PIL import Image

from medlib.core import backbones, loading, networks
from medlib.core.fast import fusing
from medlib.core.fast.engine import cpu_has_bfloat16, embedder, find_batch_size, suitable

BACKBONES = {
    "vgg16-random": ("VGG16", 0.85),
    "resnet50-random": ("ResNet50", 0.80),
    "densenet121-random": ("DenseNet121", 0.60),
    "dinov2_small-random": ("DINOv2 ViT-S/14", 0.85),
    "dinov2_base-random": ("DINOv2 ViT-B/14", 0.85),
}
# On a GPU: the share of the bf16 matrix rate for vision transformers, the ratio for the others.
CUDA = {
    "vgg16-random": ("VGG16", None),
    "resnet50-random": ("ResNet50", None),
    "densenet121-random": ("DenseNet121", None),
    "dinov2_small-random": ("DINOv2 ViT-S/14", 0.40),
    "dinov2_base-random": ("DINOv2 ViT-B/14", 0.50),
    "dinov2_large-random": ("DINOv2 ViT-L/14", 0.60),
}
SIZE = 224  # pixels
PEER = "eager timm + DataLoader"


def peers_loader(row: backbones.Backbone, paths: list[Path]) -> torch.utils.data.DataLoader:
    """The peer's input; its workers stay alive from one timing to the next."""
    workers = 2 if harness.DEVICE == "cpu" else os.cpu_count()
    files = harness.Files(paths, [0] * len(paths), harness.resized(row, SIZE))
    return torch.utils.data.DataLoader(
        files, batch_size=32, num_workers=workers, persistent_workers=True
    )


@torch.inference_mode()
def eager(row: backbones.Backbone, model: torch.nn.Module, loader) -> torch.Tensor:
    """The peer: an ordinary loop over a DataLoader."""
    parts = [networks.embed(row, model, batch.to(harness.DEVICE)).cpu() for batch, _ in loader]
    return torch.cat(parts)


@torch.inference_mode()
@torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
def ours(embed, pack: np.ndarray, batch_size: int, rounds: int = 1) -> torch.Tensor:
    """The loop of ``features.extract`` without its files, ``rounds`` times through the images."""
    rows = np.array_split(np.arange(len(pack)), len(pack) // batch_size) * rounds
    return torch.cat([embed(b) for b in loading.batches(pack, rows, harness.DEVICE)]).cpu()


def exported(row: backbones.Backbone, model: torch.nn.Module, batch_size: int) -> dict:
    """The network in other engines: name -> function of a normalised float32 array."""
    if harness.DEVICE != "cpu" or not importlib.util.find_spec("openvino"):
        print("onnxruntime and OpenVINO: not installed, not timed")
        return {}
    import onnxruntime
    import openvino

    class Embedding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return networks.embed(row, self.model, x)

    example = torch.zeros(batch_size, 3, SIZE, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network.onnx")
        torch.onnx.export(Embedding().eval(), (example,), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        hints = {
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time on all cores, as ours
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
        }
        network = openvino.Core().compile_model(path, "CPU", hints)
    return {
        "onnxruntime": lambda x: session.run(None, {name: x})[0],
        "OpenVINO": lambda x: network(x)[0],
    }


def main() -> None:
    options = harness.arguments(__doc__, backbones=True)
    cuda, quick = harness.DEVICE == "cuda", options.quick
    n = 16 if quick else 1024 if cuda else 96
    table = CUDA if cuda else BACKBONES
    table = dict(list(table.items())[1:2]) if quick else harness.chosen(table, options)
    with tempfile.TemporaryDirectory() as folder:
        paths = harness.photographs(Path(folder), min(n, 256), (600, 450))
        pack = np.stack([np.asarray(Image.open(p).resize((SIZE, SIZE))) for p in paths])
        rows = np.arange(n) % len(paths)
        paths, pack = [paths[i] for i in rows], pack[rows]
        ratios = [one(name, *row, paths, pack, options) for name, row in table.items()]
    if not cuda:
        geometric = np.exp(np.mean(np.log(ratios), axis=0))
        name, mean = "extraction, geometric mean", float(np.median(geometric))
        harness.report(name, PEER, geometric, target=1.5, value=mean, unit="ratio", quick=quick)


def one(name, title, target, paths, pack, options) -> np.ndarray:
    """Time one backbone; returns the ratios to the peer, one a repeat."""
    cuda, n, quick = harness.DEVICE == "cuda", len(pack), options.quick
    row = backbones.get(name)
    engines = ["eager"] if quick or (cuda and row.patch == 1) else ["eager", "compiled"]
    peer = harness.timm_model(row, SIZE)
    model = fusing.place(networks.build(name, SIZE)[0], harness.DEVICE)
    blank = torch.zeros(1, 3, SIZE, SIZE, device=harness.DEVICE)
    model = fusing.fold_scales(model, blank)
    first = torch.from_numpy(pack[:16]).to(harness.DEVICE)
    loader = peers_loader(row, paths)
    eager(row, peer, loader)  # its workers start
    contestants = {"peer": lambda: eager(row, peer, loader)}
    with torch.inference_mode():
        work = harness.flops(lambda: networks.embed(row, peer, blank))
        exact = model
        model, _ = suitable(row, model, "auto" if cuda else "float32", first)
        plain, rounds = embedder(row, model), 1
        size = find_batch_size(plain, first)
        if cuda:  # a tenth of a second is too short to be timed: run for two seconds
            ours(plain, pack, size)
            rounds = math.ceil(2 / harness.seconds(lambda: ours(plain, pack, size)))
        for engine in engines:
            embed = embedder(row, model, engine == "compiled")
            start = time.perf_counter()
            ours(embed, pack[:size], size)
            if engine == "compiled":
                print(f"{title}: compiling took {time.perf_counter() - start:.0f} s")
            contestants[engine] = lambda embed=embed: (
                harness.seconds(lambda: ours(embed, pack, size, rounds)) / rounds
            )
        if not cuda and cpu_has_bfloat16():
            lower = fusing.lowered(exact, torch.bfloat16, networks.normalise(row, first[:1]))
            embed = embedder(row, lower)
            contestants["bfloat16"] = lambda embed=embed: ours(embed, pack, size)
        others = {} if quick else exported(row, peer, size)
        normalised = networks.normalise(row, torch.from_numpy(pack[:size])).contiguous().numpy()
        for engine, run in others.items():
            contestants[engine] = lambda run=run: [run(normalised) for _ in range(n // size)]
    kind, dtype = ("bf16", torch.bfloat16) if cuda else ("fp32", torch.float32)
    for way in harness.LIMITS:  # how long the operations would take at this rate
        contestants[way] = lambda way=way: work * n / harness.matrix_rate(way, dtype)
    times = harness.interleaved(contestants, options.repeats)
    for engine in engines:
        label, speed = f"extraction {title}, {engine}", n / np.median(times[engine])
        common = {"value": float(speed), "unit": "images/s", "quick": quick}
        goal = 4.0 if cuda and row.patch == 1 and engine == "eager" else None
        harness.report(label, PEER, times["peer"] / times[engine], target=goal, **common)
        goal = target if cuda or engine == "eager" else None
        if cuda:
            busy = harness.at_work(contestants[engine])
            harness.report(label, "device at work", busy, target=0.95, **common)
        for way in harness.LIMITS:
            limit, share = f"{kind} rate of {way}", times[way] / times[engine]
            harness.report(label, limit, share, target=goal, **common)
        for other in others:
            goal = 0.95 if engine == "eager" else None
            harness.report(label, other, times[other] / times[engine], target=goal, **common)
    if "bfloat16" in times:
        label, value = f"extraction {title}, bfloat16", float(n / np.median(times["bfloat16"]))
        ratio = times["eager"] / times["bfloat16"]
        harness.report(
            label, "ours in float32", ratio, target=1.0, value=value, unit="images/s", quick=quick
        )
    return times["peer"] / times["eager"]


if __name__ == "__main__":
    main()
