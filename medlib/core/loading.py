"""Images on their way to the network: read in batches, sent to the device."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from medlib.core.fast import transfer


def device_name(device: str = "auto") -> str:
    """The device to use: ``"auto"`` becomes cuda if there is a GPU, else cpu (mps is untried)."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def send(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy values to the device. On CUDA, pinned memory lets the host go on meanwhile."""
    if torch.device(device).type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def batches(
    values: np.ndarray | torch.Tensor, parts: Iterable[np.ndarray], device: torch.device | str
) -> Iterator[torch.Tensor]:
    """The values with these row numbers, part by part, on the device.

    ``values`` is a tensor on the device, or an array that may be memory-mapped. The next parts of
    an array are read and copied to the device while the current one is in use.
    """
    if isinstance(values, torch.Tensor):
        for part in parts:
            yield values[send(torch.from_numpy(part), device)]
    elif torch.device(device).type == "cuda":
        read = _ahead(lambda part: transfer.pinned(values, part), parts, readers=4)
        yield from transfer.copied(read, torch.device(device))
    else:
        yield from _ahead(lambda part: torch.from_numpy(transfer.take(values, part)), parts, 1)


def _ahead(
    read: Callable[[np.ndarray], torch.Tensor], parts: Iterable[np.ndarray], readers: int
) -> Iterator[torch.Tensor]:
    """``read(part)`` for every part, in order; as many as there are readers are read ahead."""
    ahead: deque = deque()
    with ThreadPoolExecutor(readers) as pool:
        for part in parts:
            ahead.append(pool.submit(read, part))
            if len(ahead) > readers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
