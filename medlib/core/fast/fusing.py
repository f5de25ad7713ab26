"""The same network with fewer or faster layers."""

import copy
from collections import Counter
from collections.abc import Mapping

import torch
from timm.layers import LayerScale
from torch import nn
from torch.nn import functional


class PointwiseLinear(nn.Linear):
    """A linear layer on tokens (B, N, d), computed as a convolution of width one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 3:
            return super().forward(x)
        tokens = x.transpose(1, 2).unsqueeze(2)  # (B, N, d) -> (B, d, 1, N), channels-last
        weight = self.weight[:, :, None, None]
        return functional.conv2d(tokens, weight, self.bias).squeeze(2).transpose(1, 2)


class ConvReLU(nn.Conv2d):
    """A convolution that ends in ReLU, by one kernel on CUDA."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cudnn_convolution_relu(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class LinearGELU(nn.Linear):
    """A linear layer that ends in GELU, by one kernel on CUDA."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        made = torch._addmm_activation(self.bias, flat, self.weight.T, use_gelu=True)
        return made.unflatten(0, x.shape[:-1])


WITH_ACTIVATION = {nn.Conv2d: ConvReLU, nn.Linear: LinearGELU}


def place(model: nn.Module, device: str) -> nn.Module:
    """A model on its device, laid out as it runs fastest there; its weights stay the same.

    Convolutions run channels-last. On a CPU with AVX-512, linear layers on tokens run as
    convolutions of width one: oneDNN computes those at full width on AMD's cores, too, where MKL,
    which torch uses for matrix products, uses half of it. With AVX2 training is faster by matrix
    products (``benchmarks/README.md``).
    """
    model = model.to(device, memory_format=torch.channels_last)
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if torch.device(device).type == "cpu" and wide:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = PointwiseLinear  # parameters and their names stay
    return model


def fold_scales(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copy for evaluation, in which layers that only rescale another's output are part of it.

    These are batch norm that directly follows a convolution, and timm's LayerScale that follows a
    linear layer; a forward pass of ``images`` (B, 3, H, W), normalised, shows which. The model
    itself is returned where nothing can be folded, or where the copy would compute something else
    (the unscaled output is used as well).
    """
    folded = copy.deepcopy(model)
    names = {module: name for name, module in folded.named_modules()}
    kinds = {nn.BatchNorm2d: nn.Conv2d, LayerScale: nn.Linear}
    with torch.inference_mode():
        pairs, expected = _followers(folded, images, kinds)
        if not pairs:
            return model
        for scaling, layer in pairs.items():
            if isinstance(scaling, LayerScale):
                layer.weight.mul_(scaling.gamma[:, None])
                if layer.bias is not None:
                    layer.bias.mul_(scaling.gamma)
            else:
                folded.set_submodule(names[layer], nn.utils.fuse_conv_bn_eval(layer, scaling))
            # timm's BatchNormAct2d ends in an activation, which stays. Of the others nothing stays.
            folded.set_submodule(names[scaling], getattr(scaling, "act", nn.Identity()))
        return folded if _close(folded.forward_features(images), expected, 1e-3) else model


def lowered(model: nn.Module, dtype: torch.dtype, images: torch.Tensor) -> nn.Module:
    """A copy that computes in a lower precision.

    On CUDA, the kernel of a layer also computes ReLU or GELU that directly follows it, which saves
    a pass through the device's memory. This GELU is the one with tanh, at most 5e-4 off: as much
    as float16 rounds 1 by. ``images`` as in :func:`fold_scales`.
    """
    model, images = copy.deepcopy(model).to(dtype), images.to(dtype)
    if not images.is_cuda:
        return model
    fused, kinds = copy.deepcopy(model), {nn.ReLU: nn.Conv2d, nn.GELU: nn.Linear}
    names = {module: name for name, module in fused.named_modules()}
    with torch.inference_mode():
        pairs, expected = _followers(fused, images, kinds)
        for activation, layer in pairs.items():
            if type(layer) in WITH_ACTIVATION:
                layer.__class__ = WITH_ACTIVATION[type(layer)]
                fused.set_submodule(names[activation], nn.Identity())
        try:
            same = _close(fused.forward_features(images), expected, 0.05)
        except (RuntimeError, TypeError):  # no such kernel: of a shape, or of padding by name
            same = False
    return fused if same else model


def _followers(
    model: nn.Module, images: torch.Tensor, kinds: Mapping[type, type]
) -> tuple[dict[nn.Module, nn.Module], torch.Tensor]:
    """Find modules (type: a key of ``kinds``) that directly follow a layer (type: its value).

    Returns that layer for each such module, and the feature maps of the forward pass that shows
    it. Modules and layers that are used more than once are left out.
    """
    outputs, sources, calls, hooks = {}, {}, Counter(), []

    def after(module, inputs, output):
        calls[module] += 1
        outputs[id(output)] = module, output  # held, so that no other tensor gets its id

    def before(module, inputs):
        calls[module] += 1
        source = outputs.pop(id(inputs[0]), (None,))[0]
        if any(isinstance(module, f) and isinstance(source, kind) for f, kind in kinds.items()):
            sources[module] = source

    for module in model.modules():
        if isinstance(module, tuple(kinds.values())):
            hooks.append(module.register_forward_hook(after))
        if isinstance(module, tuple(kinds)):
            hooks.append(module.register_forward_pre_hook(before))
    features = model.forward_features(images)
    for hook in hooks:
        hook.remove()
    once = {m: source for m, source in sources.items() if calls[m] == calls[source] == 1}
    return once, features


def _close(values: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((values - expected).abs().max() <= tolerance * expected.abs().max())
