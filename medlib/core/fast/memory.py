"""A training step in the memory of its device: activation checkpointing and micro-batches."""

from collections.abc import Callable

import torch

from medlib.core.classifier import Classifier
from medlib.core.fast import graph
from medlib.core.fast.resume import Course


def activation_bytes(model: Classifier, image_size: int) -> int:
    """The bytes that one image's forward pass keeps for the gradient."""
    device = next(model.parameters()).device

    def kept(n_images: int) -> int:
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # the tensor itself would keep the graph, and so itself, alive

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(torch.zeros(n_images, 3, image_size, image_size, device=device))
        del logits  # until now it has kept alive all that was counted
        return sum(storages.values())

    model.eval()  # batch norm's statistics are not to change
    return kept(2) - kept(1)  # weights are kept as well, but once


def checkpoint(model: Classifier, checkpointing: str, image_size: int, batch_size: int) -> bool:
    """Make a network recompute activations instead of keeping them; returns whether it does.

    This takes a third more time. ``checkpointing`` is "always", "never", or "auto": on CUDA, where
    a step would take more than 80 % of the free memory. Raises ValueError where it is "always" and
    the network cannot do it.
    """
    device = next(model.parameters()).device
    wanted = checkpointing == "always"
    if checkpointing == "auto" and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        # Bytes per weight: a gradient and AdamW's two moments in float32, a copy in bfloat16.
        step = 14 * trained + batch_size * activation_bytes(model, image_size)
        wanted = step > 0.8 * free
    if wanted:
        try:
            model.backbone.set_grad_checkpointing(True)
        except AssertionError as error:  # timm's way to refuse
            if checkpointing == "auto":
                return False
            way_out = 'take checkpointing="never" and a smaller batch_size.'
            raise ValueError(f"{model.row.name} cannot checkpoint: {way_out}") from error
    return wanted


def fitted(
    step: Callable[..., None], model: Classifier, course: Course, batch_size: int
) -> Callable[..., None]:
    """The training step as it runs on the model's device: on CUDA as a graph, in as many parts
    (``course.micro_batches``) as the memory demands.

    Raises MemoryError when not even one image fits the GPU.
    """
    device = next(model.parameters()).device
    # Checkpointing asks for the state of the random numbers, which a graph cannot hold.
    recorded = device.type == "cuda" and not getattr(model.backbone, "grad_checkpointing", False)
    # One stream for all attempts: cuBLAS keeps a workspace for each stream, for good.
    stream = torch.cuda.Stream(device) if recorded else None

    def prepared() -> Callable[..., None]:
        return graph.replayed(step, stream) if recorded else step

    launch = prepared()

    def run(*inputs: torch.Tensor) -> None:
        nonlocal launch
        while not _runs(launch, inputs):
            if course.micro_batches >= batch_size:
                raise MemoryError(
                    f"The GPU's memory does not hold one image of a step of {batch_size}: take "
                    'checkpointing="always", smaller images or a smaller backbone.'
                )
            course.micro_batches = min(2 * course.micro_batches, batch_size)
            launch = prepared()  # the recorded graph still has the old number of parts

    return run


def _runs(step: Callable[..., None], inputs: tuple[torch.Tensor, ...]) -> bool:
    """Run a step. Returns False if it did not fit the GPU's memory: then nothing was learnt."""
    try:
        step(*inputs)
        return True
    except torch.OutOfMemoryError:
        pass
    # The error no longer holds the step's tensors. So their memory can be freed here, not before.
    torch.cuda.empty_cache()
    return False
