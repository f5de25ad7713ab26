"""A step of fine-tuning, augmentation included: ours, against an ordinary eager loop.

On CPU cores: ResNet50 and DINOv2's ViT-S/14 at 224 px, batches of 16, random weights (they take the
same time). Ours is `finetune.train` on packed images. The peer is what tutorials show: a Dataset
over JPEG files (600 × 450 pixels, as dermoscopy has), torchvision's transforms, a DataLoader with
two workers, timm's network as it is, Adam. Both draw a mirror image, a rotation, a shift, a scale,
brightness and contrast. The peer's workers are running before it is timed, but it waits for its
first batch, as in every epoch. The speed is also reported as a share of the machine's matrix rate,
measured in the same minute. torch counts the operations of the forward and backward pass.

On a CUDA device four things are measured:

- bfloat16 training, compiled and not, as a share of the bfloat16 matrix rate;
- CNNs against eager float32, with and without TF32. The peer waits for no input: its one batch
  stays on the device;
- the share of the time in which the device is at work;
- the number of steps after which compiling has saved more time than it took.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

from medlib.core import backbones, classifier, finetune
from medlib.core.fast import fusing, transfer
from medlib.core.settings import FineTuning

SIZE, CLASSES = 224, 2
RATE = 1e-4


def augmented(size: int) -> Callable:
    """The peer's transform: the same draws as ours, image by image, by torchvision."""
    return transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1)),
            transforms.ColorJitter(brightness=0.2, contrast=0.2),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def plain_network(backbone: str, size: int) -> torch.nn.Module:
    """timm's network with its own classifier, as `create_model` gives it."""
    import timm

    row = backbones.get(backbone)
    arguments = {"img_size": size} if row.patch > 1 else {}
    return timm.create_model(row.architecture, num_classes=CLASSES, **arguments).train()


def plain_step(network, optimiser, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    optimiser.zero_grad()
    loss = functional.cross_entropy(network(inputs), target)
    loss.backward()
    optimiser.step()
    return loss


def image_flops(backbone: str, size: int) -> float:
    """Floating-point operations of one image's forward and backward pass."""
    network = plain_network(backbone, size)
    return harness.flops(lambda: network(torch.zeros(2, 3, size, size)).sum().backward()) / 2


def our_epoch(
    backbone: str, size: int, batch: int, steps: int, device: str = "cpu", compiled: bool = False
) -> Callable[[], object]:
    """Each call trains for one epoch: ``steps`` batches."""
    rng, n = np.random.default_rng(0), batch * steps
    images = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    model = fusing.place(classifier.Classifier(backbone, size, CLASSES), device)
    if compiled:
        model.compile()
    rows, images = np.arange(n), transfer.resident(images, torch.device(device))
    data = finetune.Data(images, rows % CLASSES, rows, CLASSES)
    settings = FineTuning(learning_rates=(RATE,), epochs=10**6, batch_size=batch)
    training = finetune.train(model, data, rows, learning_rate=RATE, settings=settings)
    return lambda: next(training)


def eager_epoch(
    backbone: str, paths: list[Path], size: int, batch: int, steps: int
) -> Callable[[], None]:
    network = plain_network(backbone, size)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    n = batch * steps  # the files again and again
    many = [paths[i % len(paths)] for i in range(n)]
    files = harness.Files(many, [i % CLASSES for i in range(n)], augmented(size))
    loader = DataLoader(files, batch, shuffle=True, num_workers=2, persistent_workers=True)

    def epoch() -> None:
        total = 0.0
        for inputs, target in loader:
            total += plain_step(network, optimiser, inputs, target).item()

    return epoch


def eager_batch(backbone: str, size: int, batch: int, steps: int, tf32: bool) -> Callable[[], None]:
    """On CUDA: the same batch again and again, in float32. With ``tf32``, torch's default,
    convolutions round their inputs to 10 bits."""
    network = plain_network(backbone, size).cuda()
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    inputs = torch.randn(batch, 3, size, size, device="cuda")
    target = torch.arange(batch, device="cuda") % CLASSES

    @torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32)
    def epoch() -> None:
        for _ in range(steps):
            plain_step(network, optimiser, inputs, target)

    return epoch


def on_cpu(options: argparse.Namespace) -> None:
    quick, repeats = options.quick, options.repeats
    size, batch, steps = (32, 4, 2) if quick else (SIZE, 16, 3)
    targets = {"resnet50-random": (1.3, None), "dinov2_small-random": (None, 0.75)}
    if quick:
        targets = {"micro_resnet-random": (None, None), "vit_tiny-random": (None, None)}
    with tempfile.TemporaryDirectory() as folder:
        paths = harness.photographs(Path(folder), 16, (600, 450))
        for backbone, (ratio, share) in harness.chosen(targets, options).items():
            flops = image_flops(backbone, size) * batch * steps
            contestants = {
                "ours": our_epoch(backbone, size, batch, steps),
                "eager": eager_epoch(backbone, paths, size, batch, steps),
            }
            for warm_up in 2 * list(contestants.values()):  # memory is first touched in both
                warm_up()
            for way in harness.LIMITS:  # how long the operations would take at this rate
                contestants[way] = lambda n=flops, way=way: n / harness.matrix_rate(way)
            times = harness.interleaved(contestants, repeats)
            speed = float(batch * steps / np.median(times["ours"]))
            name = f"fine-tuning step, {backbone}"
            for peer, key, target in (
                ("eager, Adam, DataLoader", "eager", ratio),
                ("fp32 rate of torch.mm", "torch.mm", share),
                ("fp32 rate of oneDNN", "oneDNN", None),
            ):
                harness.report(
                    name,
                    peer,
                    times[key] / times["ours"],
                    target=target,
                    value=speed,
                    unit="images/s",
                    quick=quick,
                )


def on_cuda(options: argparse.Namespace) -> None:
    quick, repeats = options.quick, options.repeats
    size, batch, steps = (32, 8, 4) if quick else (SIZE, 64, 20)
    transformers = {
        "dinov2_small-random": None,
        "vit_base-random": 0.4,
        "dinov2_base-random": 0.4,
        "dinov2_large-random": 0.4,
    }
    cnns = {"resnet50-random": 4, "vgg16-random": 4, "densenet121-random": 4}
    if quick:
        transformers, cnns = {"vit_tiny-random": None}, {"micro_resnet-random": None}
    for backbone in harness.chosen(transformers | cnns, options):
        name = f"fine-tuning step on CUDA, {backbone}"
        flops = image_flops(backbone, size) * batch * steps
        ways = {
            way: our_epoch(backbone, size, batch, steps, "cuda", compiled=way == "compiled")
            for way in ("not compiled", "compiled")
        }
        first = {way: harness.seconds(epoch) for way, epoch in ways.items()}
        contestants = ways | {
            "limit": lambda n=flops: n / harness.matrix_rate("torch.mm", torch.bfloat16),
        }
        peers = {"fp32": False, "TF32": True} if backbone in cnns else {}
        for peer, tf32 in peers.items():
            contestants[peer] = eager_batch(backbone, size, batch, steps, tf32)
            contestants[peer]()
        times = harness.interleaved(contestants, repeats)
        for way, epoch in ways.items():
            own = float(np.median(times[way]))
            label, shown = f"{name}, {way}", {"value": batch * steps / own, "unit": "images/s"}
            compiled = way == "compiled"
            goal = transformers.get(backbone) if compiled else None
            share = times["limit"] / times[way]
            harness.report(label, "bf16 rate of torch.mm", share, target=goal, quick=quick, **shown)
            for peer in peers:
                ratio, goal = times[peer] / times[way], cnns[backbone] if compiled else None
                peer = f"eager {peer}, input at hand"
                harness.report(label, peer, ratio, target=goal, quick=quick, **shown)
            busy = harness.at_work(epoch)
            harness.report(label, "device at work", busy, target=0.95, quick=quick, **shown)
        plain, compiled = (float(np.median(times[way])) for way in ways)
        spent, saved = first["compiled"] - compiled, (plain - compiled) / steps
        pays = f"{spent / saved:.0f} steps on" if saved > 0 else "no number of steps on"
        print(f"    compiling took {spent:.0f} s, and pays from {pays}", flush=True)


def main() -> None:
    options = harness.arguments(__doc__, backbones=True)
    (on_cuda if harness.DEVICE == "cuda" else on_cpu)(options)


if __name__ == "__main__":
    main()
