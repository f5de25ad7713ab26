"""Images read without filling memory, and copied to a CUDA device while it computes."""

import functools
import math
import mmap
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

AHEAD = 2  # batches on a GPU, beside the one that it computes with


def take(packed: np.ndarray, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Copy the images with these row numbers: (len(rows), H, W, 3) uint8, into ``out`` if given.

    The pages of a memory-mapped file that this touches are released again: they count as resident
    memory, which would grow with the data set. The operating system keeps them cached. An array
    with a method ``check(rows, images)`` checks what is read; that raises ValueError for damage.
    """
    # With "clip" NumPy writes to ``out`` itself; otherwise it would write to a copy first.
    chosen = np.take(packed, rows, axis=0, out=out, mode="raise" if out is None else "clip")
    mapped = getattr(packed, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
    if check := getattr(packed, "check", None):
        check(np.asarray(rows), np.asarray(chosen))
    return np.asarray(chosen)


def pinned(values: np.ndarray, part: np.ndarray) -> torch.Tensor:
    """The values with these row numbers in pinned memory, which torch reuses for later batches.

    Fresh memory would be faulted in page by page, and copied once more.
    """
    dtype = torch.from_numpy(np.empty(0, values.dtype)).dtype
    batch = torch.empty(len(part), *values.shape[1:], dtype=dtype, pin_memory=True)
    take(values, part, batch.numpy())
    return batch


def copied(pinned: Iterator[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """The batches on a CUDA device, each copied there while it computes with the one before.

    Work on a batch must be queued on the current stream before the next batch is asked for: its
    memory is released as soon as that work is done. A host that is more than :data:`AHEAD` batches
    ahead of the device waits, or it would fill the device's memory.
    """
    copying, at_work = _copying_stream(device), deque()
    # The copying stream may be given memory that work which is already queued still reads.
    copying.wait_stream(torch.cuda.current_stream(device))
    for batch in pinned:
        with torch.cuda.stream(copying):
            there = batch.to(device, non_blocking=True)
        torch.cuda.current_stream(device).wait_stream(copying)
        yield there
        # Held until it has been used. Tensor.record_stream would do this as well, but it releases
        # nothing any more once a CUDA graph could not be recorded (graph.replayed).
        at_work.append((torch.cuda.current_stream(device).record_event(), there))
        if len(at_work) > AHEAD:
            at_work[0][0].synchronize()
            at_work.popleft()


@functools.cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all copies: torch does not reuse the memory of one stream in another."""
    return torch.cuda.Stream(device)


def resident(images: np.ndarray, device: torch.device) -> np.ndarray | torch.Tensor:
    """The images on the device, where that is CUDA and a third of its free memory holds them.

    Otherwise they are returned as they are, and ``loading.batches`` reads them when needed.
    """
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] / 3:
        return images
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for rows in np.array_split(np.arange(len(images)), math.ceil(images.nbytes / 2**28)):
        whole[rows[0] : rows[-1] + 1] = torch.from_numpy(take(images, rows))
    return whole


_SCALES: dict = {}  # not functools.cache: torch.compile warns of that


def scale(mean: tuple, std: tuple, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and -mean / std; kept on the device, since each copy would wait for it."""
    if (mean, std, device) not in _SCALES:
        m, s = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        pair = 1 / (255 * s), -m / s
        _SCALES[mean, std, device] = tuple(tensor.float().to(device) for tensor in pair)
    return _SCALES[mean, std, device]
