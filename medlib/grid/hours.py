"""How long the jobs of a grid will take: operations that are counted, rates that were measured.

The rates are those of ``benchmarks/README.md``; how fast this machine multiplies matrices is
measured when the estimate is made. A network that was not timed is taken to be as efficient as the
one that was timed and whose number of operations is nearest. Compiling and downloads are left out.
All this is rough, so times are only told in rounded words (:func:`about`).
"""

import functools
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medlib.core import backbones, settings
from medlib.core.fast import halving
from medlib.data import cards, manifest
from medlib.data.layouts import base
from medlib.grid import address, gridfile
from medlib.grid.plan import Job


class Timed(NamedTuple):
    """A network that was timed at 224 px. A value is NaN if it was not timed on that machine.

    ``gflop``: operations of one image, in units of 10⁹ (counted). ``share``: of the rate at which a
    CPU multiplies matrices by oneDNN, when images are embedded: the mean of two CPUs. ``embeds``
    and ``trains``: images a second on one H200.
    """

    kind: str
    gflop: float
    share: float = math.nan
    embeds: float = math.nan
    trains: float = math.nan


TIMED = [
    Timed("CNN", 30.7, 0.89, 13_300, 4_590),  # VGG16
    Timed("CNN", 8.17, 0.83, 12_630, 5_352),  # ResNet50
    Timed("CNN", 5.67, 0.67, 11_330, 3_546),  # DenseNet121
    Timed("CNN", 0.599, 0.29),  # MobileNetV2, from its ratio to ResNet50 on a third CPU
    Timed("ViT", 2.51, 0.61),  # ViT-Ti, from its ratio to ViT-S on a third CPU
    Timed("ViT", 12.25, 0.72, 20_760, 5_366),  # DINOv2 S
    Timed("ViT", 35.1, trains=3_095),  # ViT-B/16
    Timed("ViT", 46.3, 0.80, 8_447, 2_396),  # DINOv2 B
    Timed("ViT", 162.0, embeds=2_805, trains=822),  # DINOv2 L
]
# An image in training takes three times the operations, on a CPU at 0.85 of the efficiency.
TRAINING, TRAINING_SHARE = 3, 0.85
H200 = 740e12  # FLOP/s, by torch.mm in bfloat16: measured
# How much longer an A100 (80 GB) takes than an H200, by the makers' data sheets: 4.8 against 2.0
# TB/s of memory, and 989 against 312 TFLOP/s in bfloat16. Networks wait for the one or the other.
A100 = (2.4, 3.2)
# Core-seconds to start a job, to prepare an image, to prepare a volume, and to draw figures.
START, IMAGE, VOLUME, DRAWING = 8.5, 0.02, 0.5, 20
# Core-seconds of the heads of a backbone (1280 features) for 50,000 images to be fitted in 18
# draws, and of the intervals of a run for 10,015 images in seven classes.
PROBES, INTERVALS = 420, 4.4
MEASURE = """
import torch
from medlib.grid import hours
print(hours.matrix_rate("torch.mm", torch.bfloat16, "cuda"))
"""
RULES = ("prepare", "extract", "probe", "finetune", "summarise")  # these may take long
NETWORKS = ("extract", "finetune")  # rules that a GPU makes faster
PHANTOMS = 350  # images of a task at full size, roughly
# Data sets without a list of samples here, by their publications: samples, of which for training.
PUBLISHED = dict.fromkeys(("glioma_ucsf_t1", "glioma_ucsf_t1ce", "glioma_ucsf_flair"), (495, 297))
PUBLISHED |= {"fundus_amd": (800, 320)}
DOUBT = (
    "These are rough estimates, from rates of other machines and a count of operations\n"
    "(medlib/grid/hours.py). Half or twice as long is no surprise. Other work on the machine,\n"
    "large image files and downloads make it longer."
)


class Size(NamedTuple):
    """Of a task: samples, images, images of one training part, classes, rotations."""

    samples: float
    images: float
    training: float
    classes: int
    rotations: int


def size(grid: dict, results: Path | str, task: str) -> Size | None:
    """The :class:`Size` of a task: by its manifest, its publication, or a count of its files.

    None where neither is there.
    """
    folds, changed = (grid["prepare"].get(name) for name in ("folds", "volumes"))
    card = cards.read(task).with_settings(folds=folds or 0, volumes=changed)
    rotations = 1 if card.split == cards.OFFICIAL else card.folds
    share = 0.6 if rotations == 1 else (rotations - 2) / rotations  # one fold tests, one validates
    lists = [address.manifest(results, task)]
    lists += [cards.FOLDER / f"{task}.csv"] * (grid["data"] != "phantoms")
    if found := [path for path in lists if path.is_file()]:
        rows = manifest.read_rows(found[0])
        n = len(rows)
        if rotations == 1 and "split" in rows:
            share = (rows["split"] == "train").mean()
    elif grid["data"] == "phantoms":
        n = PHANTOMS * grid["prepare"].get("phantom_scale", 1.0)
    elif task in PUBLISHED:
        n, training = PUBLISHED[task]
        share = training / n
    elif not (n := _files(grid, card)):
        return None
    of_one = (card.volumes.slices or 100) if card.volumes else 1
    return Size(n, n * of_one, n * of_one * share, len(card.classes), rotations)


def _files(grid: dict, card: cards.Card) -> int:
    """The number of image files in the folder of a data set; 0 where it is not there."""
    try:
        folder = cards.data_set_folder(card, cards.data_folder(grid["data"], ""))
    except FileNotFoundError:
        return 0
    return len(base.files(folder, (*base.IMAGES, *base.VOLUMES, ".dcm"))) if folder else 0


@functools.cache
def operations(architecture: str, pixels: int, given: tuple = ()) -> tuple[float, int]:
    """The operations of one image in a network, in units of 10⁹, and the width of its features.

    ``given`` are pairs of names and values for ``timm.create_model``. Nothing is computed: torch
    counts the operations on tensors without values.
    """
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = timm.create_model(architecture, num_classes=0, **dict(given)).eval()
        model.forward_features(torch.empty(1, 3, pixels, pixels))
    return counter.get_total_flops() / 1e9, model.num_features


def counted(grid: dict, regime: str, name: str) -> tuple[float, int]:
    """The :func:`operations` of a backbone at its image size in a regime."""
    row, pixels = backbones.get(name), gridfile.image_size(grid, regime, name)
    given = ({"img_size": pixels} if row.patch > 1 else {}) | dict(row.build)
    return operations(row.architecture, pixels, tuple(given.items()))


def nearest(kind: str, gflop: float, field: str) -> Timed:
    """The network of a kind ("CNN" or "ViT"; others count as both) that is nearest in operations.

    It was timed in ``field``: "share", "embeds" or "trains".
    """
    timed = [one for one in TIMED if not math.isnan(getattr(one, field))]
    own = [one for one in timed if one.kind == kind] or timed
    return min(own, key=lambda one: abs(math.log(one.gflop / gflop)))


def on_h200(kind: str, gflop: float, training: bool) -> float:
    """Images a second on one H200. A network is never taken to be faster than its nearest one."""
    field = "trains" if training else "embeds"
    one = nearest(kind, gflop, field)
    return getattr(one, field) * min(1, one.gflop / gflop)


def on_cpu(kind: str, gflop: float, training: bool, rate: float) -> float:
    """Images a second on one core that multiplies matrices at this ``rate`` (FLOP/s)."""
    reached = rate * nearest(kind, gflop, "share").share / (1e9 * gflop)
    return reached * TRAINING_SHARE / TRAINING if training else reached


def training_images(grid: dict, regime: str, size: Size, fraction: float) -> float:
    """How many images a run of a trained regime trains on, each counted whenever it is used.

    An image that is only predicted counts a third: validation images after each epoch, test images
    after each training. Half of the images that are not for training are test images.
    """
    names = ("learning_rates", "epochs", "halving")
    asked = {name: grid[regime][name] for name in names if name in grid[regime]}
    asked = replace(settings.FineTuning(), **asked)
    courses = sum(halving.stay(asked, fold) for fold in range(size.rotations))
    held_out = (size.images - size.training) / 2 / TRAINING  # on either side
    each_epoch = fraction * (size.training + held_out)
    return courses * (asked.epochs * each_epoch + held_out)


class Machine(NamedTuple):
    """The number of cores, the FLOP/s of one core, and the FLOP/s of the GPU (0: no GPU)."""

    cores: int
    rate: float
    gpu: float = 0


def this_machine() -> Machine:
    """:class:`Machine`, measured now, in seconds. A GPU that cannot be measured is left out."""
    import torch

    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    if torch.cuda.is_available():
        # In another process: this one may be the controller, and would keep a part of the memory.
        command = [sys.executable, "-c", MEASURE]
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode:
            return Machine(cores, 0, float(done.stdout))
    threads = torch.get_num_threads()
    return Machine(cores, max(map(matrix_rate, ("torch.mm", "oneDNN"))) / min(threads, cores))


def matrix_rate(way: str = "torch.mm", dtype: object = None, device: str = "cpu") -> float:
    """The rate at which a device multiplies matrices, in FLOP/s, measured now (0.3 s a product).

    ``dtype`` is a torch.dtype (None: float32). On a CPU torch gives matrix products to MKL, which
    uses only AVX2 on AMD's cores. The same product as a convolution of width one, ``way`` "oneDNN",
    uses AVX-512 on these cores, too. If that is faster, it is the real limit.
    """
    import torch
    from torch.nn.functional import conv2d

    cuda = device == "cuda"
    best, rounds, budget = 0.0, 50 if cuda else 1, 0.3  # seconds
    for m, k, n in ((8192, 8192, 8192), (16384, 4096, 4096)) if cuda else ((4096, 1024, 1024),):
        a = torch.randn(m, k, device=device, dtype=dtype)
        b = torch.randn(n, k, device=device, dtype=dtype)
        tokens, kernels = a.view(16, 1, -1, k).permute(0, 3, 1, 2), b[:, :, None, None]
        multiply, pair = (torch.mm, (a, b.T)) if way == "torch.mm" else (conv2d, (tokens, kernels))
        with torch.inference_mode():
            multiply(*pair)
            begun = time.perf_counter()
            while time.perf_counter() - begun < budget:
                start = time.perf_counter()
                for _ in range(rounds):
                    multiply(*pair)
                if cuda:
                    torch.cuda.synchronize()
                best = max(best, 2 * m * k * n * rounds / (time.perf_counter() - start))
    return best


def estimate(
    grid: dict, results: Path | str, jobs: Iterable[Job], machine: Machine
) -> tuple[pd.DataFrame, list[str]]:
    """The seconds that these jobs take, a row per rule, and the names of jobs without an estimate.

    Columns: ``jobs``; ``here``, seconds on this machine with all its cores (or its GPU); ``h200``,
    seconds with one H200 and the cores of this machine.
    """
    rows, unknown, sizes = {}, {}, {}
    for job in jobs:
        paths = [Path(path) for path in job.outputs]
        paths = [path.relative_to(results) for path in paths if path.is_relative_to(results)]
        of = map(address.belongs_to, paths)
        task, name = next((each for each in of if each[0]), (None, None))
        if task and task not in sizes:
            sizes[task] = size(grid, results, task)
        if task and sizes[task] is None:
            unknown[f"{task} (its images were not found: name their folder with DATA=…)"] = True
            continue
        here, h200 = START + DRAWING, 0.0  # core-seconds, seconds of the GPU
        try:
            if job.rule in NETWORKS:
                here, h200 = _network(grid, job, sizes[task], name, machine.rate)
            elif task and job.rule in ("prepare", "probe", "summarise"):
                here = START + _own(grid, job, sizes[task], task, name)
        except (RuntimeError, ValueError, TypeError, AssertionError):  # torch cannot count it
            unknown[f"{name} (torch cannot count its operations)"] = True
            continue
        row = rows.setdefault(job.rule, {"jobs": 0, "here": 0.0, "h200": 0.0})
        row["jobs"] += 1
        if job.rule in NETWORKS:  # on a GPU one after another
            row["h200"] += h200 + START
            on_gpu = h200 * H200 / machine.gpu + START if machine.gpu else 0
            row["here"] += on_gpu or here / machine.cores
        else:
            row["h200"] += here / machine.cores
            row["here"] += here / machine.cores
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["jobs", "here", "h200"])
    return table, list(unknown)


def _network(grid: dict, job: Job, of: Size, name: str, rate: float) -> tuple[float, float]:
    """Core-seconds of a job on this CPU, and seconds on an H200, of which each has its START."""
    training = job.rule == "finetune"
    run = address.Address.parse(Path(job.outputs[0]).parent) if training else None
    regime = run.regime if training else "frozen"
    kind, (gflop, _) = backbones.get(name).family, counted(grid, regime, name)
    n = training_images(grid, regime, of, run.label_fraction) if training else of.images
    cpu = n / on_cpu(kind, gflop, training, rate) if rate else 0
    return START + cpu, n / on_h200(kind, gflop, training)


def _own(grid: dict, job: Job, of: Size, task: str, name: str) -> float:
    """Core-seconds of a job that prepares, probes or summarises."""
    if job.rule == "prepare":
        each = IMAGE if of.images == of.samples else VOLUME
        return of.samples * each * len(gridfile.image_sizes(grid))
    if job.rule == "probe":
        _, width = counted(grid, "frozen", name)
        draws = len(gridfile.label_fractions(grid, task)) * len(gridfile.seeds(grid, "frozen"))
        n = of.images * of.rotations / 50_000
        return PROBES * n * (width / 1280) ** 0.75 * draws / 18
    runs = sum(run.task == task and run.backbone == name for run in gridfile.runs(grid))
    resamples = grid["collect"].get("resamples", 5000) / 5000
    return runs * resamples * (0.06 + INTERVALS * of.samples * of.classes / 70_105)


def about(seconds: float) -> str:
    """A time rounded to one digit: "under a minute", "20 min", "3 h", "8 days", "2 years"."""
    if seconds < 60:
        return "under a minute"
    units = ("min", 60, 90), ("h", 3600, 36), ("days", 86400, 400), ("years", 31_557_600, math.inf)
    for unit, length, until in units:
        n = seconds / length
        digit = 10 ** math.floor(math.log10(n)) if n >= 10 else 1
        if n < until:
            return f"{max(1, round(n / digit) * digit)} {unit}"
    raise AssertionError


def words(table: pd.DataFrame, machine: Machine) -> list[str]:
    """The lines that `make plan` prints about an :func:`estimate`. Empty if there are no jobs."""
    if table.empty:
        return []
    halves = {"frozen": ["extract", "probe"], "fine-tuned": ["finetune"]}
    halves = {half: table[table.index.isin(rules)] for half, rules in halves.items()}
    others = {rule: rule if rule in RULES else "all others" for rule in table.index}
    table = table.groupby(others, sort=False).sum()
    own = "this machine, its GPU" if machine.gpu else f"this machine, {machine.cores} cores"
    shown = pd.DataFrame({"jobs": table["jobs"], own: table["here"].map(about)})
    shown["one H200"] = table["h200"].map(about)
    lines = ["How long this may take, by rule:", *shown.to_string().splitlines()]
    a100 = [about(factor * table["h200"].get("finetune", 0)) for factor in A100]
    for half, of in halves.items():
        if not of.empty:
            here, h200 = about(of["here"].sum()), about(of["h200"].sum())
            line = f"The {half} half ({', '.join(of.index)}): {here} here, {h200} with one H200"
            between = f"; one A100 of 80 GB may take {' to '.join(dict.fromkeys(a100))}"
            lines.append(line + between * (half == "fine-tuned") + ".")
    return [*lines, DOUBT]
