"""What a training step takes in memory, and activation checkpointing."""

from __future__ import annotations

import torch

from medlib.core.classifier import Classifier
from medlib.errors import unknown

CHECKPOINTING = ("auto", "always", "never")


def activation_bytes(model: Classifier, image_size: int) -> int:
    """The bytes that one image's forward pass keeps for the gradient."""
    device = next(model.parameters()).device

    def kept(n_images: int) -> int:
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # itself it would keep the graph alive, which keeps it alive

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(torch.zeros(n_images, 3, image_size, image_size, device=device))
        del logits  # it has kept alive, until now, all that was counted
        return sum(storages.values())

    model.eval()  # batch norm's statistics are not to change
    return kept(2) - kept(1)  # weights are kept as well, but once


def checkpoint(model: Classifier, checkpointing: str, image_size: int, batch_size: int) -> bool:
    """Let a network recompute activations rather than keep them, where asked to; whether it does.

    It costs a third more time. ``"auto"``: on CUDA, and where a step would take more than 80 % of
    the free memory. Raises ValueError for another word, and where a network cannot do it.
    """
    if checkpointing not in CHECKPOINTING:
        raise ValueError(unknown("checkpointing", checkpointing, CHECKPOINTING))
    device = next(model.parameters()).device
    wanted = checkpointing == "always"
    if checkpointing == "auto" and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        # A gradient and AdamW's two moments in float32, a copy in bfloat16.
        step = 14 * trained + batch_size * activation_bytes(model, image_size)
        wanted = step > 0.8 * free
    if wanted:
        try:
            model.backbone.set_grad_checkpointing(True)
        except AssertionError as error:  # timm's way of saying so
            if checkpointing == "auto":
                return False
            raise ValueError(
                f'{model.row.name} cannot checkpoint: take checkpointing="never" and a smaller '
                "batch_size."
            ) from error
    return wanted
