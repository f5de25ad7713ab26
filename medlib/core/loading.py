"""Images on their way to the network: read in batches, sent to the device."""

from __future__ import annotations

import functools
import math
import mmap
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

AHEAD = 2  # batches on a GPU, beside the one that it is at work on


def device_name(device: str = "auto") -> str:
    """``"auto"`` as what this machine has: cuda or cpu; any other name as it is."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def send(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """To the device; on CUDA through pinned memory, so that the host need not wait."""
    if torch.device(device).type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def batches(
    values: np.ndarray | torch.Tensor, parts: Iterable[np.ndarray], device: torch.device | str
) -> Iterator[torch.Tensor]:
    """The values with these row numbers, part by part, on the device.

    ``values`` is a tensor on the device, or an array that may lie on the disk: of that, the next
    parts are read, and copied to the device, while this one is in use.
    """
    if isinstance(values, torch.Tensor):
        for part in parts:
            yield values[send(torch.from_numpy(part), device)]
        return
    cuda = torch.device(device).type == "cuda"

    def read(part: np.ndarray) -> torch.Tensor:
        if not cuda:
            return torch.from_numpy(take(values, part))
        # Straight into pinned memory, which torch keeps for the next batch: fresh memory would be
        # faulted in page by page, and copied once more.
        dtype = torch.from_numpy(np.empty(0, values.dtype)).dtype
        batch = torch.empty(len(part), *values.shape[1:], dtype=dtype, pin_memory=True)
        take(values, part, batch.numpy())
        return batch

    def ready() -> Iterator[torch.Tensor]:
        readers = 4 if cuda else 1
        ahead: deque = deque()
        with ThreadPoolExecutor(readers) as pool:
            for part in parts:
                ahead.append(pool.submit(read, part))
                if len(ahead) > readers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    yield from _copied(ready(), torch.device(device)) if cuda else ready()


def _copied(pinned: Iterator[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """The batches on a CUDA device, copied there while it is at work on the one before.

    What is done with a batch is to be queued on the current stream before the next is asked for:
    then its memory is given back as soon as that is done. Whoever is more than :data:`AHEAD`
    batches ahead of the device waits, or they would fill its memory.
    """
    copying, at_work = _copying_stream(device), deque()
    # It may be given memory that what is queued by now still reads.
    copying.wait_stream(torch.cuda.current_stream(device))
    for batch in pinned:
        with torch.cuda.stream(copying):
            there = batch.to(device, non_blocking=True)
        torch.cuda.current_stream(device).wait_stream(copying)
        yield there
        # Held until it has been used. Tensor.record_stream would see to that as well, but never
        # gives back anything once a CUDA graph could not be recorded (finetune._replayed).
        at_work.append((torch.cuda.current_stream(device).record_event(), there))
        if len(at_work) > AHEAD:
            at_work[0][0].synchronize()
            at_work.popleft()


@functools.cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: memory that has been used on one stream is not given to another."""
    return torch.cuda.Stream(device)


def take(packed: np.ndarray, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Copy the images with these row numbers out of a pack: (len(rows), H, W, 3) uint8.

    ``out`` is where to, if that is there already. The pages of a mapped file that this touches are
    let go of again: they count as resident memory, which would grow with the data set. The
    operating system keeps them cached.
    """
    # Clipping is for NumPy's sake, which would write to a copy of ``out`` first.
    chosen = np.take(packed, rows, axis=0, out=out, mode="raise" if out is None else "clip")
    mapped = getattr(packed, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
    return np.asarray(chosen)


def resident(images: np.ndarray, device: torch.device) -> np.ndarray | torch.Tensor:
    """The images on the device, where that is CUDA and a third of its free memory holds them.

    Otherwise as they are: :func:`batches` then reads them as they are needed.
    """
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] / 3:
        return images
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for rows in np.array_split(np.arange(len(images)), math.ceil(images.nbytes / 2**28)):
        whole[rows[0] : rows[-1] + 1] = torch.from_numpy(take(images, rows))
    return whole
