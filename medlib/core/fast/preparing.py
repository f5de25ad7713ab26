"""Compile and checkpoint a network before a training, where that pays."""

from torch import Tensor, nn

from medlib.core.classifier import Classifier
from medlib.core.fast import memory
from medlib.core.settings import FineTuning
from medlib.core.splits import Rotation

# Compiling a network and its gradient takes 10 to 40 s and saves milliseconds a step. On an H200
# it pays from 1218 steps of ViT-L on, 2143 of VGG16 and 3235 of ViT-B, but only from 9855 of
# ResNet50, whose many layers have kernels of their own (benchmarks/finetuning.py prints this).
COMPILE_FROM = {"plain": 3000, "batch norm": 10_000}  # steps


def prepare(
    model: Classifier, data: object, rotations: list[Rotation], settings: FineTuning
) -> tuple[dict, int]:
    """Compile and checkpoint where that pays. Returns what was done, and the number of images."""
    parameters, modules = list(model.parameters()), model.modules()
    cuda, size, batch_size = parameters[0].is_cuda, data.images.shape[1], settings.batch_size
    # An epoch leaves out its last, smaller batch.
    sizes = [int(rotation.train.sum()) for rotation in rotations]
    candidates = len(settings.learning_rates) * settings.epochs
    n_images = candidates * sum(n - n % min(batch_size, n) for n in sizes)
    kind = "batch norm" if any(isinstance(m, nn.BatchNorm2d) for m in modules) else "plain"
    how = {
        "candidates": candidates,
        "weights_digest": model.weights_digest,
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "precision": "bfloat16" if cuda else "float32",
        "compiled": cuda and n_images >= COMPILE_FROM[kind] * batch_size,
        "checkpointing": memory.checkpoint(model, settings.checkpointing, size, batch_size),
        "images_on_device": isinstance(data.images, Tensor),
    }
    if how["compiled"]:
        model.compile()
    return how, n_images
