"""A training step as one CUDA graph."""

import itertools
import warnings
from collections.abc import Callable

import torch

RECORD_AFTER = 3  # steps, before a CUDA graph is made of one


def replayed(step: Callable[..., None], stream: torch.cuda.Stream) -> Callable[..., None]:
    """A training step as a CUDA graph: recorded once, on a stream, and then launched as a whole.
    (To launch its kernels one by one can take the host longer than the device takes to run them.)

    The first calls run as they are, to allocate and to choose kernels; the next one is recorded.
    Inputs keep their shapes. A step that cannot be recorded runs on as it is, after a warning.
    """
    device, calls, graph, held = stream.device, itertools.count(), None, ()

    def plainly(*inputs: torch.Tensor) -> None:
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            step(*inputs)
        torch.cuda.current_stream(device).wait_stream(stream)

    def run(*inputs: torch.Tensor) -> None:
        nonlocal graph, held
        if next(calls) < RECORD_AFTER or graph is False:
            return plainly(*inputs)
        if graph is None:
            held, graph = [part.clone() for part in inputs], torch.cuda.CUDAGraph()
            random = torch.cuda.default_generators[device.index or 0]
            usual = random.clone_state()
            try:
                with (
                    torch.cuda.stream(torch.cuda.current_stream(device)),  # also after an error
                    # Other threads, which read images, may go on meanwhile.
                    torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
                ):
                    step(*held)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                words = f"No CUDA graph of this network, going on without: {reason}"
                warnings.warn(words, stacklevel=3)
                graph = False
                random.graphsafe_set_state(usual)  # the failure left it recording
                return plainly(*inputs)
        for own, given in zip(held, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        return graph.replay()

    return run
