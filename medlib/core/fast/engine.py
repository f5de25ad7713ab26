"""The fastest way to embed images: precision, compilation and the size of a batch."""

import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from medlib.core import networks
from medlib.core.backbones import Backbone
from medlib.core.fast import fusing
from medlib.core.loading import batches
from medlib.core.settings import Extraction
from medlib.errors import unknown

PRECISIONS = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
# The least cosine similarity to float32 that a lower precision must keep, measured on 64 sample
# images; auto requires 0.9998 there instead of 0.999, so that all other images keep 0.999 as well.
SIMILAR, SURELY_SIMILAR, SAMPLE = 0.999, 0.9998, 64
# Compiling takes 8 to 50 s. On a CPU it saves a tenth with ResNets and nothing with other networks;
# on an H200 it saves a vision transformer 10 s in a million images (benchmarks/README.md).
COMPILE_FROM = {"cpu": math.inf, "mps": math.inf, "cuda": 1_000_000}  # images
CPU_BATCH = 16  # the smallest for which a single thread, too, uses oneDNN; more gains nothing


def fastest(
    row: Backbone, model: torch.nn.Module, images: np.ndarray, settings: Extraction
) -> tuple[Callable[[torch.Tensor], torch.Tensor], dict]:
    """The function from uint8 images (b, H, W, 3) on the model's device to embeddings (b, d), and
    how it computes: precision, cosine_to_float32, batch_size (the most that b may be), compiled."""
    device, n = next(model.parameters()).device, len(images)
    spread = np.linspace(0, n - 1, min(SAMPLE, n)).astype(np.int64)
    sample = next(batches(images, [spread], device))
    model = fusing.fold_scales(model, networks.normalise(row, sample[:1]))
    model, how = suitable(row, model, settings.precision, sample)
    embed = embedder(row, model)
    batch_size = settings.batch_size or find_batch_size(embed, sample)
    compiled = n >= COMPILE_FROM[device.type] if settings.compiled is None else settings.compiled
    if compiled:
        first = next(batches(images, [np.arange(min(batch_size, n))], device))
        embed, compiled = _compiled(row, model, first, embed)
    return embed, how | {"batch_size": batch_size, "compiled": compiled}


def precision_name(precision: str, device: str) -> str:
    """What ``"auto"`` tries first on the device: float16 on CUDA, bfloat16 on a CPU that has it.

    On CUDA float16 is as fast as bfloat16 and has eight times its resolution. Raises ValueError for
    an unknown precision, and for one that the device lacks: it would be slower than float32.
    """
    cuda = torch.device(device).type == "cuda"
    own = list(PRECISIONS) if cuda else ["float32", "bfloat16"][: 1 + cpu_has_bfloat16()]
    if precision == "auto":
        return own[-1]
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, ["auto", *PRECISIONS]))
    if precision not in own:
        raise ValueError(f"{device} does not have {precision!r}: set precision='{own[-1]}'.")
    return precision


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies matrices in bfloat16 (AVX-512 BF16 or AMX), as Linux says.

    There images are embedded 1.5 to 5 times as fast as in float32 (``benchmarks/README.md``).
    """
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False  # no Linux
    return not words.isdisjoint(("avx512_bf16", "amx_bf16"))


def embedder(
    row: Backbone, model: torch.nn.Module, compiled: bool = False
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from uint8 images (B, H, W, 3) to float32 embeddings (B, d), on one device."""
    dtype = next(model.parameters()).dtype

    def embed(images: torch.Tensor) -> torch.Tensor:
        return networks.embed(row, model, networks.normalise(row, images).to(dtype))

    if not compiled:
        return embed
    torch.compiler.reset()  # earlier networks count towards a limit
    # Weights are constants here, so the compiler lays them out and folds batch norm beforehand.
    return torch.compile(embed, dynamic=False, options={"freezing": True})


def _compiled(row, model, batch, plain: Callable) -> tuple[Callable, bool]:
    """The compiled function and True; ``plain`` and False where compiling fails."""
    embed = embedder(row, model, compiled=True)
    try:
        embed(batch)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # mostly: there is no C++ compiler
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"torch.compile does not work here, going on without: {reason}", stacklevel=4)
        return plain, False

    size = len(batch)

    def padded(images: torch.Tensor) -> torch.Tensor:
        missing = size - len(images)  # another shape would be compiled again
        return embed(functional.pad(images, (0, 0) * 3 + (0, missing)))[: len(images)]

    return padded, True


def find_batch_size(embed: Callable, sample: torch.Tensor) -> int:
    """The batch size: fixed on a CPU; on a GPU, what half of its free memory holds."""
    device, few = sample.device, sample[:8]
    if device.type != "cuda":
        return CPU_BATCH
    embed(few)  # the first call allocates what later ones share
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    embed(few)
    each = (torch.cuda.max_memory_allocated(device) - before) / len(few)
    fitting = 0.5 * torch.cuda.mem_get_info(device)[0] / each
    return int(2 ** np.clip(np.floor(np.log2(fitting)), 0, 9))


def suitable(
    row: Backbone, model: torch.nn.Module, asked: str, batch: torch.Tensor
) -> tuple[torch.nn.Module, dict]:
    """The model in the precision to compute in, and a dict with that precision and its least cosine
    similarity to float32 in a batch of uint8 images (B, H, W, 3).

    "auto" keeps float32 if lower precision changes the embeddings too much. Raises
    FloatingPointError if another precision was asked for and does so.
    """
    precision = precision_name(asked, batch.device)
    if precision == "float32":
        return model, {"precision": precision, "cosine_to_float32": None}
    lower = fusing.lowered(model, PRECISIONS[precision], networks.normalise(row, batch[:1]))
    both = [embedder(row, either)(batch) for either in (lower, model)]
    least = functional.cosine_similarity(*both).min().item()
    if asked == "auto" and not least >= SURELY_SIMILAR:
        precision, lower = "float32", model
    elif not least >= SIMILAR:
        raise FloatingPointError(
            f"{row.name} in {precision}: embeddings differ from those in float32 (cosine "
            f"similarity {least:.4f}, at least {SIMILAR} is asked for). Set precision='float32'."
        )
    return lower, {"precision": precision, "cosine_to_float32": least}
