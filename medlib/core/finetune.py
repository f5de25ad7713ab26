"""Fine-tuning: a backbone and a linear head on its embedding, trained together.

There are two regimes. ``finetuned`` trains all weights. ``lora`` (Hu et al., arXiv 2106.09685)
trains the head and low-rank additions to the weights; the weights themselves stay fixed. Both use
AdamW with linear warm-up and cosine decay, and light augmentation.

On a CPU everything is float32, and the same seed gives the same predictions, bit for bit. On CUDA
the networks compute in bfloat16, images stay on the device where they fit, a long training is
compiled, and a step is one CUDA graph: within an epoch the host never waits for the device.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from tqdm.auto import tqdm

from medlib import files
from medlib.core import classifier, linear, loading, metrics, networks
from medlib.core.classifier import Classifier, assign, learnt
from medlib.core.fast import fusing, halving, memory, preparing, transfer
from medlib.core.fast import resume as resuming
from medlib.core.fast.resume import NOTHING, Course, Kept
from medlib.core.settings import TRAINED, FineTuning
from medlib.core.splits import Predicted, Rotation
from medlib.errors import unknown

HISTORY = ["fold", "learning_rate", "epoch", "train_loss", "val_loss", "val_auroc", "chosen"]
OF_THE_NETWORK = ("frozen_norm", "lora_alpha", "drop_path")  # settings that change the network
WORST = (-math.inf, -math.inf)  # the score of an epoch without an AUROC


@dataclass(frozen=True)
class Data:
    """Images with their labels: what a backbone is fine-tuned and judged on."""

    images: np.ndarray | Tensor  # (n, H, W, 3) uint8, square; may be memory-mapped
    y: np.ndarray  # (n,) classes as numbers 0 … n_classes - 1
    samples: np.ndarray  # (n,) ids; rows with one id are slices of one volume, judged together
    n_classes: int
    images_hash: str = ""  # names the images: a run is not resumed with others


def _schedule(steps: int, warmup: float) -> Callable[[int], float]:
    """The factor on the learning rate at each step: linear warm-up, then half a cosine."""
    first = max(1, round(warmup * steps))
    rest = max(1, steps - first)
    return lambda step: (
        (step + 1) / first if step < first else (1 + math.cos(math.pi * (step - first) / rest)) / 2
    )


@torch.inference_mode()
def predict(
    model: Classifier, images: np.ndarray | Tensor, rows: np.ndarray, batch_size: int = 32
) -> np.ndarray:
    """Class probabilities (len(rows), K), float64, of the images with these row numbers."""
    return outputs(model, images, rows, batch_size).cpu().double().softmax(1).numpy()


@torch.inference_mode()
def outputs(
    model: Classifier, images: np.ndarray | Tensor, rows: np.ndarray, batch_size: int = 32
) -> Tensor:
    """Logits (len(rows), K) or, where the head is nn.Identity, embeddings (len(rows), d)."""
    model.eval()
    device = next(model.parameters()).device
    parts = np.split(rows, range(batch_size, len(rows), batch_size))
    # Not model(...): if compiled, it would compile again for evaluation and a smaller last batch.
    batches = loading.batches(images, parts, device)
    return torch.cat([model.forward(networks.normalise(model.row, batch)) for batch in batches])


def _begin(model: Classifier, start: dict, data: Data, probed: Rotation | None) -> None:
    """Give a model its first weights. If a rotation is given, the head starts as a linear probe."""
    assign(learnt(model), start)
    if probed is None:
        return
    rows = np.flatnonzero(probed.train | probed.val)
    head, model.head = model.head, nn.Identity()
    x = outputs(model, data.images, rows).float().cpu()
    model.head = head
    sides = probed.train[rows], probed.val[rows]
    layer = linear.layer(x, data.y[rows], data.samples[rows], *sides, data.n_classes)
    assign(learnt(head), dict(zip(("weight", "bias"), layer, strict=True)))


def train(
    model: Classifier,
    data: Data,
    rows: np.ndarray,
    *,
    learning_rate: float,
    settings: FineTuning,
    seed: int = 0,
    course: Course | None = None,
    progress: Callable[[int], object] = lambda n: None,
) -> Iterator[tuple[int, float]]:
    """Train ``model`` on the images with these row numbers; yield (epoch, loss) after each epoch.

    ``seed`` draws the order of the images and their augmentation. ``course`` is kept up to date. A
    course that has begun is continued; ``model`` must be as it was then. ``progress`` gets the
    number of images of each step. A step that does not fit the GPU is cut into micro-batches, half
    as large each time; their gradients add up to that of the whole batch. Raises FloatingPointError
    if the loss is not finite, MemoryError if not even one image fits the GPU.
    """
    course = Course() if course is None else course
    device = next(model.parameters()).device
    # The last, smaller batch of an epoch is left out (batch norm needs several images). The order
    # is drawn anew in each epoch, so that no image is left out for good.
    batch_size = min(settings.batch_size, len(rows))
    steps = len(rows) // batch_size
    schedule = _schedule(steps * settings.epochs, settings.warmup)
    optimiser, peaks = _optimiser(model, learning_rate, settings)
    labels = torch.from_numpy(np.asarray(data.y, dtype=np.int64)).to(device)
    weight = _class_weights(model, data.y[rows]) if settings.balanced else None
    generator = torch.Generator().manual_seed(seed)
    if course.epoch:
        resuming.restore(optimiser, generator, course.tensors)
    # On the device: the sum of the steps' losses, and after how many steps it was finite.
    total, finite = torch.zeros((), device=device), torch.zeros((), device=device)
    step = _step(model, optimiser, (weight, settings.clip), course, (total, finite))
    step = memory.fitted(step, model, course, batch_size)
    for epoch in range(course.epoch + 1, settings.epochs + 1):
        torch.manual_seed(seed + epoch)  # draws what drop path leaves out
        model.train()
        total.zero_()
        finite.zero_()
        order = rows[torch.randperm(len(rows), generator=generator).numpy()]
        # Row numbers in order: neighbours in the file are read together.
        parts = [np.sort(part) for part in np.split(order[: steps * batch_size], steps)]
        pairs = (loading.batches(values, parts, device) for values in (data.images, labels))
        for number, (images, target) in enumerate(zip(*pairs, strict=True), (epoch - 1) * steps):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"].fill_(peak * schedule(number))
            draws = loading.send(classifier.drawn(batch_size, generator), device)
            step(images, target, draws)
            progress(batch_size)
        loss = total.item() / steps  # only here does the host wait for the device
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The training loss is {loss} from step {int(finite) + 1} of {steps} in epoch "
                f"{epoch} on, at learning rate {learning_rate:g}: take it out of learning_rates, "
                "or lengthen the warm-up."
            )
        course.epoch, course.tensors = epoch, resuming.state(optimiser, generator)
        yield epoch, loss


def _optimiser(
    model: Classifier, learning_rate: float, settings: FineTuning
) -> tuple[AdamW, list[float]]:
    """AdamW on what is to be trained, and the highest learning rate of each of its groups."""
    device = next(model.parameters()).device
    groups = classifier.parameter_groups(model, learning_rate, settings)
    optimiser = AdamW(groups, fused=True, capturable=device.type == "cuda")
    peaks = [group["lr"] for group in optimiser.param_groups]
    for group in optimiser.param_groups:  # a tensor, which a CUDA graph reads at every replay
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
    return optimiser, peaks


def _class_weights(model: Classifier, y: np.ndarray) -> Tensor:
    """Weights (K,): the number of images divided by that of the class; 0 for an empty class."""
    counts = np.bincount(y, minlength=model.head.out_features)
    inverse = np.divide(len(y), counts, out=np.zeros(len(counts)), where=counts > 0)
    return torch.tensor(inverse, dtype=torch.float32, device=next(model.parameters()).device)


def _step(
    model: Classifier, optimiser: AdamW, how: tuple, course: Course, sums: tuple
) -> Callable[[Tensor, Tensor, Tensor], None]:
    """One training step: a function of uint8 images, labels and what augmentation has drawn.

    ``how``: the weights of the classes, or None, and the largest norm of the gradient. ``sums`` are
    two tensors on the device: the mean loss is added to the first, and 1 to the second
    while the first is finite.
    """
    (weight, clip), (total, finite) = how, sums

    def step(images: Tensor, target: Tensor, draws: Tensor) -> None:
        inputs = classifier.augmented(networks.normalise(model.row, images), draws)
        whole = len(target) if weight is None else weight[target].sum()
        mean = torch.zeros_like(total)
        optimiser.zero_grad(set_to_none=True)
        parts = inputs.chunk(course.micro_batches), target.chunk(course.micro_batches)
        for part, wanted in zip(*parts, strict=True):
            loss = functional.cross_entropy(model(part), wanted, weight=weight, reduction="sum")
            (loss / whole).backward()
            mean += loss.detach() / whole
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        total.add_(mean)
        finite.add_(total.isfinite())

    return step


def run(
    backbone: str,
    data: Data,
    rotations: list[Rotation],
    settings: FineTuning | None = None,
    *,
    regime: str = "finetuned",
    seed: int = 0,
    device: str = "auto",
    kept: Kept = NOTHING,
) -> tuple[list[Predicted], list[dict], dict]:
    """Fine-tune a backbone on every rotation, and choose one learning rate for all of them.

    For each rate the model starts from the same weights, and the epoch with the best validation
    AUROC is kept. The rate with the best mean of these AUROCs over rotations is chosen. Until then
    every rate predicts the test part; only the predictions of the chosen one are returned.
    ``regime`` is one of :data:`TRAINED`. ``seed`` draws the head, the order of the images, their
    augmentation and, in a random control arm, the weights. ``kept`` names files: a checkpoint after
    each epoch and, if wanted, the weights of each training. A run of the same data, settings and
    code continues from the checkpoint and gives the same predictions. Returns each rotation's
    probabilities; a history, one dict per epoch (keys: :data:`HISTORY`); and a dict with candidates
    (learning rates times epochs), resumed, seconds_before (of earlier attempts) and more. Raises
    ValueError for an unknown regime or no validation AUROC, and what `train` and `build` raise.
    """
    if regime not in TRAINED:
        raise ValueError(unknown("regime", regime, TRAINED))
    settings = FineTuning() if settings is None else settings
    options = {name: getattr(settings, name) for name in OF_THE_NETWORK}
    options["lora_rank"] = settings.lora_rank if regime == "lora" else 0
    model = Classifier(backbone, data.images.shape[1], data.n_classes, seed, **options)
    start, best = classifier.copied(model), classifier.copied(model)  # in the host's memory
    model = fusing.place(model, torch.device(loading.device_name(device)))
    images = transfer.resident(data.images, next(model.parameters()).device)
    data = replace(data, images=images, y=np.asarray(data.y), samples=np.asarray(data.samples))
    how, n_images = preparing.prepare(model, data, rotations, settings)
    identity = _identity(model, data, rotations, [asdict(settings), regime, seed, kept.models])
    at = resuming.restored(kept.checkpoint, identity, model, best)
    bar = {"desc": f"fine-tuning {backbone}", "unit": "image", "mininterval": 1}
    n, chosen = len(settings.learning_rates), 0
    with tqdm(total=n_images, initial=at.images, **bar) as shown:
        learn = partial(train, model, data, settings=settings, seed=seed, progress=shown.update)
        for rotation in rotations[len(at.predicted) // n :]:
            rows, val, test = map(np.flatnonzero, (rotation.train, rotation.val, rotation.test))
            for rate in halving.rates(at, settings, rotation.fold, _ranked):
                if not at.course.epoch:
                    _begin(model, start, data, rotation if settings.probe_first else None)
                for epoch, loss in learn(rows, learning_rate=rate, course=at.course):
                    judged = _judge(model, data, val)
                    if _improves(at.history, (rotation.fold, rate, epoch, loss, *judged)):
                        assign(best, learnt(model))
                    at.images = shown.n
                    resuming.keep(kept.checkpoint, identity, at, model, best)
                assign(learnt(model), best)
                resuming.keep_model(kept, rotation.fold, rate, model)
                at.predicted.append(Predicted(*(predict(model, images, r) for r in (val, test))))
                at.course = Course(micro_batches=at.course.micro_batches)
            chosen = _choose(at.history, settings)
    how |= {"micro_batches": at.course.micro_batches, "resumed": at.resumed}
    history = [row for row in at.history if not math.isnan(row["train_loss"])]  # not left out
    return at.predicted[chosen::n], history, how | {"seconds_before": round(at.seconds, 3)}


def _identity(model: Classifier, data: Data, rotations: list[Rotation], asked: list) -> str:
    """A hash of all that a run's result depends on: a checkpoint is used for the same run only."""
    folder = Path(__file__).parent
    code = {str(f.relative_to(folder)): files.file_sha256(f) for f in sorted(folder.rglob("*.py"))}
    device = next(model.parameters()).device.type
    images = [data.images_hash, list(data.images.shape), data.n_classes]
    labels = data.y, np.unique(data.samples, return_inverse=True)[1]
    sides = [np.stack([rotation.train, rotation.val, rotation.test]) for rotation in rotations]
    network = [repr(model.row), model.weights_digest, torch.__version__, device]
    return files.content_hash(asked, network, images, code, *labels, *sides)


def _judge(model: Classifier, data: Data, rows: np.ndarray) -> tuple[float, float]:
    """The mean cross-entropy and the macro AUROC on the samples that these rows belong to.

    A sample's probabilities are the mean over its slices.
    """
    proba = predict(model, data.images, rows)
    y, proba = metrics.by_sample(data.y[rows], proba, data.samples[rows])
    loss = -np.log(proba[np.arange(len(y)), y].clip(1e-12)).mean()
    return float(loss), float(metrics.auroc(y, proba))


def _score(row: dict) -> tuple[float, float]:
    """The score that compares epochs: the validation AUROC, then minus the validation loss."""
    # Small validation sets tie often in AUROC; the loss then decides.
    return WORST if math.isnan(row["val_auroc"]) else (row["val_auroc"], -row["val_loss"])


def _improves(history: list[dict], row: tuple) -> bool:
    """Add an epoch to the history. Returns whether it is the best of its training so far."""
    history.append(dict(zip(HISTORY, (*row, False), strict=True)))
    return max(history[-history[-1]["epoch"] :], key=_score) is history[-1]


def _ranked(history: list[dict], settings: FineTuning) -> list[tuple[tuple, int, list[dict]]]:
    """Score, position and best epochs of each learning rate, the best rate first."""
    n, epochs, ranked = len(settings.learning_rates), settings.epochs, []
    best = [max(history[i : i + epochs], key=_score) for i in range(0, len(history), epochs)]
    for position, rate in enumerate(settings.learning_rates):
        auroc, loss = map(fmean, zip(*map(_score, best[position::n]), strict=True))
        # By AUROC (equal means may differ in their last bit), then by loss, then the smaller rate.
        ranked.append(((round(auroc, 12), loss, -rate), position, best[position::n]))
    return sorted(ranked, key=lambda of: of[0], reverse=True)


def _choose(history: list[dict], settings: FineTuning) -> int:
    """Choose the learning rate for the rotations that are done, and mark its best epochs.

    Returns its position. Raises ValueError when no rate has an AUROC in every rotation.
    """
    ranked = _ranked(history, settings)
    (mean, *_), chosen, best = ranked[0]
    if mean == -math.inf:
        some = any(_score(of[-1]) > WORST for *_, of in ranked)
        where = " at a learning rate that has one in every earlier fold" if some else ""
        raise ValueError(
            f"Fold {history[-1]['fold']}: no epoch has a validation AUROC{where}. The val part "
            "needs samples of every class, and training predictions that are finite: take the "
            "highest out of learning_rates."
        )
    for row in history:
        row["chosen"] = any(row is one for one in best)
    return chosen
