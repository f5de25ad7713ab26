"""The network that fine-tuning trains: a backbone and a linear head on its embedding."""

import math
from typing import Self

import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional

from medlib.core import backbones, networks
from medlib.core.loading import send
from medlib.core.settings import FineTuning


class Classifier(nn.Module):
    """A backbone and a linear head on its embedding: normalised (B, 3, H, W) -> logits (B, K).

    With ``frozen_norm``, and always with LoRA or ``fixed_norm``, batch norm keeps the statistics of
    pretraining. ``lora_rank`` 0 trains all weights. A higher rank trains the head and the matrices
    that :func:`add_lora` adds.
    """

    def __init__(
        self,
        backbone: str,
        image_size: int,
        n_classes: int,
        seed: int = 0,
        *,
        frozen_norm: bool = False,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.row = backbones.get(backbone)
        self.backbone, self.weights_digest = networks.build(backbone, image_size, seed)
        self.frozen_norm = frozen_norm or self.row.fixed_norm or lora_rank > 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(networks.width(self.row, self.backbone), n_classes)
            add_drop_path(self.backbone, drop_path)
            if lora_rank:
                add_lora(self.backbone, lora_rank, lora_alpha)
                self._check_lora(torch.zeros(1, 3, image_size, image_size))

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for batch norm that must keep its statistics."""
        super().train(mode)
        for module in self.modules():
            if self.frozen_norm and isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @torch.no_grad()
    def _check_lora(self, blank: torch.Tensor) -> None:
        """Raise ValueError if the network never calls a layer to which LoRA was added."""
        from peft.tuners.lora import LoraLayer

        layers = {n: m for n, m in self.backbone.named_modules() if isinstance(m, LoraLayer)}
        hooks, called = [], set()
        for name, layer in layers.items():
            hooks.append(layer.register_forward_hook(lambda *_, name=name: called.add(name)))
        networks.embed(self.row, self.backbone, blank)
        for hook in hooks:
            hook.remove()
        if unused := [name for name in layers if name not in called]:
            said = f"LoRA has no effect on {len(unused)} of {len(layers)} layers of {self.row.name}"
            why = "the network reads their weights without calling them. Leave it out of lora."
            raise ValueError(f"{said} ({', '.join(unused[:3])} …): {why}")

    def forward(self, normalised: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=normalised.is_cuda):
            embedded = networks.embed(self.row, self.backbone, normalised)
        return self.head(embedded.float())  # bfloat16 would make many logits equal


def add_lora(network: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a network in place, and add to its layers the low-rank matrices that will be trained.

    Their product is scaled by ``alpha / rank`` and starts at zero, so the output is unchanged at
    first. They are added to every linear layer (qkv, proj, fc1, fc2 of a vision transformer). In a
    network without linear layers, they are added to every convolution that is not grouped. (A
    ResNet's random control then learns little: each of its blocks ends in a batch norm whose
    weights are zero and frozen.) Raises ImportError if peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        way_out = "pip install -r requirements.txt, or leave lora out of the grid."
        raise ImportError(f"The regime lora needs peft ({error}): {way_out}") from error
    layers = dict(network.named_modules())
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    plain = [n for n, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups == 1]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear or plain)
    inject_adapter_in_model(config, network)


def add_drop_path(network: nn.Module, rate: float) -> None:
    """Leave out residual branches at random in training (stochastic depth).

    The rate grows linearly from 0 in the first layer to ``rate`` in the last one (Huang et al.,
    arXiv 1603.09382). A network without timm's layers for it, such as VGG, stays as it is.
    """
    names = [name for name, _ in network.named_modules() if ".drop_path" in name]
    for number, name in enumerate(names if rate else ()):
        network.set_submodule(name, DropPath(rate * number / max(1, len(names) - 1)))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Light augmentation of normalised images (B, 3, H, W), drawn for each image.

    A mirror image half of the time; rotation within ±10°, scale within ±10 %, shift within ±5 %;
    contrast within ±20 % and brightness within ±0.2 standard deviations.
    """
    return augmented(images, send(drawn(len(images), generator), images.device))


def drawn(n: int, generator: torch.Generator) -> torch.Tensor:
    """Augmentations (n, 8) of ``n`` images: for each an affine matrix, contrast, brightness."""

    def draw(*shape: int) -> torch.Tensor:  # uniform in -1 … 1; on the CPU, the same everywhere
        return torch.rand(*shape, generator=generator).mul_(2).sub_(1)

    angle, zoom = draw(n) * math.radians(10), 1 + 0.1 * draw(n)
    mirror = torch.where(draw(n) < 0, -1.0, 1.0)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    # affine_grid is in half image widths: ±0.1 is a shift by ±5 % of the width.
    right, down = (0.1 * draw(n, 2)).unbind(1)
    matrix = mirror * cos, -sin, right, mirror * sin, cos, down
    return torch.stack([*matrix, 0.2 * draw(n), 0.2 * draw(n)], dim=1)


def augmented(images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    matrix = drawn[:, :6].reshape(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast, brightness = drawn[:, 6:, None, None].split(1, dim=1)
    return moved.mul_(1 + contrast).add_(brightness)


def parameter_groups(model: Classifier, learning_rate: float, settings: FineTuning) -> list[dict]:
    """Parameters in groups for AdamW, each with its learning rate and weight decay.

    The head learns at ``learning_rate``, the backbone's last layer at ``backbone_rate`` times that;
    each layer below at ``layer_decay`` times the rate of the layer above (Clark et al., arXiv
    2003.10555). A layer is a block of a transformer or a stage of a CNN, as timm groups them.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    above = dict.fromkeys(named, 0)  # the number of layers between a parameter and the loss
    if settings.layer_decay != 1:
        from timm.models import group_parameters

        matcher = model.backbone.group_matcher(coarse=True)
        layer = group_parameters(model.backbone, matcher, reverse=True)
        last = max(layer.values())
        above |= {f"backbone.{name}": last + 1 - number for name, number in layer.items()}
    groups = {}
    for name, parameter in named.items():
        rate = learning_rate * settings.layer_decay ** above[name]
        rate *= 1 if name.startswith("head.") else settings.backbone_rate
        # Weight decay is for the weights of projections, not for norms and biases.
        decay = settings.weight_decay if parameter.ndim > 1 else 0
        group = {"params": [], "weight_decay": decay, "lr": rate}
        groups.setdefault((rate, decay), group)["params"].append(parameter)
    return list(groups.values())


def learnt(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters that are not frozen, and the statistics of batch norm."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trained | dict(model.named_buffers())


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learnt(model).items()}


def assign(target: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
