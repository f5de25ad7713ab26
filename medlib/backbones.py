"""The table of backbones, and how one is built with its weights checked.

A backbone is one row of ``backbones.yaml``. Its key carries its pretraining: ``vit_tiny-imagenet``,
``dinov2_small``. Every row has a control arm with the same architecture at random
initialisation: ``vit_tiny-random``, ``dinov2_small-random``.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from medlib.errors import listed, unknown

# torch and timm take seconds to import: who only reads the table, such as the grid's planner, does
# not wait for them.
if TYPE_CHECKING:
    import torch
    from torch import nn

TABLE_FILE = Path(__file__).with_name("backbones.yaml")
EMBEDDINGS = ("gap", "cls", "cls+patches")
HUB_TIMEOUT = 5  # seconds; a hub that cannot be reached must be an error, soon


@dataclass(frozen=True)
class Backbone:
    """One row: how to build a network and where its weights come from.

    ``timm_name`` is ``architecture.tag`` in timm; the weights file is ``<timm_name>.safetensors``.
    ``embedding``: ``gap`` global average pool of the last feature map, ``cls`` class token,
    ``cls+patches`` class token joined with the mean of the patch tokens. ``patch`` is the size, in
    pixels, that must divide the image size. ``build`` are further arguments of the architecture,
    ``config`` overrides timm's ``pretrained_cfg`` where the weights want other preprocessing.
    """

    name: str
    timm_name: str
    pretraining: str
    embedding: str
    licence: str
    patch: int = 1
    hub: bool = True  # False: timm's hub does not have these weights, only a file
    fixed_norm: bool = False  # batch norm is folded into the convolutions: see `_load`
    build: Mapping = field(default_factory=dict)
    config: Mapping = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return self.timm_name.partition(".")[0]

    @functools.cached_property
    def preprocessing(self) -> dict:
        """Mean and standard deviation (of RGB in 0 … 1), interpolation: timm's own."""
        config = timm_config(self) | self.config
        colours = {name: tuple(config[name]) for name in ("mean", "std")}
        return colours | {"interpolation": config["interpolation"]}


def read_table(path: Path = TABLE_FILE) -> dict[str, Backbone]:
    """The rows of a table of backbones; raises ValueError that lists all that is wrong in it."""
    table, problems = {}, []
    known = {field.name: field.default is MISSING and field.default_factory is MISSING
             for field in fields(Backbone) if field.name != "name"}  # fmt: skip
    for name, row in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        row = row if isinstance(row, dict) else {}
        wrong = [f"{name}: {unknown('field', n, list(known))}" for n in row if n not in known]
        wrong += [f"{name}: {n} is missing" for n, must in known.items() if must and n not in row]
        if row.get("embedding", "gap") not in EMBEDDINGS:
            wrong.append(f"{name}: {unknown('embedding', row['embedding'], EMBEDDINGS)}")
        if not wrong:
            table[name] = Backbone(name, **row)
        problems += wrong
    if problems:
        raise ValueError(f"{path} cannot be used:\n{listed(problems)}")
    return table


TABLE = read_table()


def timm_config(backbone: Backbone) -> dict:
    """timm's ``pretrained_cfg`` of the weights, or of the architecture where timm lacks them."""
    import timm

    name = backbone.timm_name if backbone.hub else backbone.architecture
    return timm.get_pretrained_cfg(name).to_dict()


def names() -> list[str]:
    """Every key: the table's rows, then the random control of each architecture."""
    return list(TABLE) + [_control(row) for row in TABLE.values()]


def _control(row: Backbone) -> str:
    return row.name.removesuffix(f"-{row.pretraining}") + "-random"


def get(name: str) -> Backbone:
    """The row of a key; raises ValueError, with the valid keys, for an unknown one."""
    if name in TABLE:
        return TABLE[name]
    for row in TABLE.values():
        if name == _control(row):
            return replace(row, name=name, pretraining="random", fixed_norm=False)
    way_out = "A new backbone is one row in medlib/backbones.yaml."
    raise ValueError(unknown("backbone", name, names(), way_out))


def check_image_size(backbone: Backbone, image_size: int) -> None:
    """Raise ValueError when the backbone's patches do not divide the image size."""
    if image_size % backbone.patch:
        below = image_size // backbone.patch * backbone.patch
        nearest = [size for size in (below, below + backbone.patch) if size > 0]
        raise ValueError(
            f"{backbone.name} needs an image size that is a multiple of {backbone.patch}, not "
            f"{image_size}; the nearest are {' and '.join(map(str, nearest))}."
        )


# ------------------------------------------------------------------------------------ weights


def weights_file(backbone: Backbone) -> Path | None:
    """The backbone's file in ``MEDLIB_WEIGHTS``, if it is there."""
    folder = os.environ.get("MEDLIB_WEIGHTS", "")
    path = Path(folder) / f"{backbone.timm_name}.safetensors"
    return path if folder and path.is_file() else None


def find_weights(backbone: Backbone) -> Path:
    """The file of pretrained weights: from ``MEDLIB_WEIGHTS``, else from timm's hub (or its cache).

    Raises FileNotFoundError within seconds, naming the backbone, the file that was looked for and
    the ways out, when neither has it.
    """
    if (path := weights_file(backbone)) is not None:
        return path
    folder = os.environ.get("MEDLIB_WEIGHTS", "")
    looked = f"{backbone.timm_name}.safetensors in " + (
        f"MEDLIB_WEIGHTS={folder!r} (not there)" if folder else "MEDLIB_WEIGHTS (not set)"
    )
    reason = "which does not have these weights"
    if backbone.hub:
        try:
            return _from_hub(backbone)
        except Exception as error:  # offline, refused, gated, not found: all have one way out
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    raise FileNotFoundError(
        f"No weights for {backbone.name}. Looked for {looked}, then on the hub ({reason}). Either "
        f"put {backbone.timm_name}.safetensors into a folder and name that (make … WEIGHTS=folder, "
        "or MEDLIB_WEIGHTS), or run where the hub can be reached. Random weights are a backbone of "
        f"their own: {_control(backbone)}."
    )


def _from_hub(backbone: Backbone) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = timm_config(backbone)["hf_hub_id"]
    file = "model.safetensors"
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=True))
    except LocalEntryNotFoundError:
        _reach_hub(repository, file)
        return Path(huggingface_hub.hf_hub_download(repository, file, etag_timeout=HUB_TIMEOUT))


def _reach_hub(repository: str, file: str) -> None:
    """Fail at once where there is no hub: the hub's own client would retry for minutes."""
    import urllib.error
    import urllib.request

    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "") == "1":
        raise ConnectionError("HF_HUB_OFFLINE is set")
    # The file itself: a proxy or a hub in trouble may still answer for its front page.
    request = urllib.request.Request(huggingface_hub.hf_hub_url(repository, file), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:  # the client would retry these; others it reports at once
            raise


# ----------------------------------------------------------------------------------- building


def build(name: str, image_size: int, seed: int = 0) -> tuple[nn.Module, str]:
    """A backbone without its classifier, in evaluation mode, and the digest of its weights.

    Pretrained weights are loaded strictly: a parameter without a value is an error. The control
    arm is initialised from ``seed``. The digest is the sha256 of the weights file, or ``random-``
    and that of the initial values. Raises ValueError for an unknown name or an image size that
    does not fit, FileNotFoundError when weights cannot be had.
    """
    import timm
    import torch

    backbone = get(name)
    check_image_size(backbone, image_size)
    path = None if backbone.pretraining == "random" else find_weights(backbone)
    arguments = dict(backbone.build)
    if backbone.patch > 1:
        arguments["img_size"] = image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(backbone.architecture, num_classes=0, **arguments)
    if path is None:
        digest = "random-" + state_digest(model)
    else:
        _load(model, backbone, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if hasattr(model, "pre_logits"):  # VGG's fully connected layers come after the embedding
        model.pre_logits = torch.nn.Identity()
    return model.eval(), digest


def _load(model: nn.Module, backbone: Backbone, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    if backbone.patch > 1:
        # Position embeddings come for the size of pretraining; timm resamples them for ours.
        from timm.models.vision_transformer import checkpoint_filter_fn

        state = checkpoint_filter_fn(state, model)
    classifier = timm_config(backbone)["classifier"]
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # the same names, other shapes
        shapes = [line.strip() for line in str(error).splitlines()[1:4]]
        raise ValueError(
            f"{path} does not fit {backbone.name} ({backbone.architecture}): {' '.join(shapes)}"
        ) from error
    unexpected = [key for key in result.unexpected_keys if not key.startswith(f"{classifier}.")]
    if result.missing_keys or unexpected:
        raise ValueError(
            f"{path} does not fit {backbone.name} ({backbone.architecture}): it lacks "
            f"{result.missing_keys[:5]} and has {unexpected[:5]} too many."
        )
    # Where batch norm was folded into the convolutions, what is left of it is the identity. In
    # training it would standardise by the batch after all, and wipe out what was learned.
    if folded_norm(model) != backbone.fixed_norm:
        raise ValueError(
            f"In {path} batch norm is {'' if folded_norm(model) else 'not '}folded into the "
            f"convolutions: set fixed_norm={folded_norm(model)} in the row of {backbone.name} in "
            "medlib/backbones.yaml, so that it is fine-tuned accordingly."
        )


def folded_norm(model: nn.Module) -> bool:
    """Whether a model has batch norm, and all of it has the statistics of no data at all."""
    from torch.nn import BatchNorm2d

    norms = [module for module in model.modules() if isinstance(module, BatchNorm2d)]
    return bool(norms) and all(
        norm.running_mean.eq(0).all() and norm.running_var.sub(1).abs().max() < 1e-3
        for norm in norms
    )


def state_digest(model: nn.Module) -> str:
    """sha256 (16 digits) over all parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def place(model: nn.Module, device: str) -> nn.Module:
    """A model on its device, laid out as it runs fastest there; its numbers stay what they are.

    Convolutions run channels-last. On a CPU with AVX-512 the linear layers on tokens run as
    convolutions of width one: oneDNN computes those at full width also on AMD's cores, where MKL,
    to which torch gives matrix products, uses half of it. With AVX2 both are as fast, and training
    is faster by matrix products (``benchmarks/README.md``).
    """
    import torch
    from torch import nn

    model = model.to(device, memory_format=torch.channels_last)
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if torch.device(device).type == "cpu" and wide:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _pointwise_linear()  # parameters and their names stay
    return model


@functools.cache
def _pointwise_linear() -> type:
    import torch
    from torch.nn import functional

    class PointwiseLinear(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.ndim != 3:
                return super().forward(x)
            tokens = x.transpose(1, 2).unsqueeze(2)  # (B, N, d) -> (B, d, 1, N), channels-last
            weight = self.weight[:, :, None, None]
            return functional.conv2d(tokens, weight, self.bias).squeeze(2).transpose(1, 2)

    return PointwiseLinear


def fold_scales(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copy without the layers that only rescale another's output: that one does both at once.

    Folded are batch norm that directly follows a convolution, as it is in evaluation mode, and
    timm's LayerScale that follows a linear layer; for training the copy is of no use. Which follow
    is seen from a forward pass of ``images`` (B, 3, H, W), normalised. A model with nothing to
    fold, and one that would then compute something else (where the output is used unscaled as
    well), is returned as it is.
    """
    import torch
    from timm.layers import LayerScale
    from torch import nn

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
                fused = nn.utils.fuse_conv_bn_eval(layer, scaling)
                folded.set_submodule(names[layer], fused)
            # timm's BatchNormAct2d ends in an activation; what is left of the others is nothing.
            folded.set_submodule(names[scaling], getattr(scaling, "act", nn.Identity()))
        return folded if _close(folded.forward_features(images), expected, 1e-3) else model


def lowered(model: nn.Module, dtype: torch.dtype, images: torch.Tensor) -> nn.Module:
    """A copy that computes in a lower precision, activations between its layers included.

    On CUDA, ReLU and GELU that directly follow a layer are computed by that layer's kernel, so that
    its output does not go through the device's memory once more. That GELU is the one with tanh, at
    most 5e-4 off: what float16 rounds 1 by. ``images`` (B, 3, H, W), normalised, are for a forward
    pass, as in :func:`fold_scales`.
    """
    import torch
    from torch import nn

    model, images = copy.deepcopy(model).to(dtype), images.to(dtype)
    if not images.is_cuda:
        return model
    fused, kinds = copy.deepcopy(model), {nn.ReLU: nn.Conv2d, nn.GELU: nn.Linear}
    names = {module: name for name, module in fused.named_modules()}
    with torch.inference_mode():
        pairs, expected = _followers(fused, images, kinds)
        for activation, layer in pairs.items():
            if type(layer) in _with_activation():
                layer.__class__ = _with_activation()[type(layer)]
                fused.set_submodule(names[activation], nn.Identity())
        try:
            same = _close(fused.forward_features(images), expected, 0.05)
        except (RuntimeError, TypeError):  # no such kernel: of a shape, or of padding by name
            same = False
    return fused if same else model


@functools.cache
def _with_activation() -> dict[type, type]:
    """Layers that end in their activation, computed by one kernel on CUDA."""
    import torch
    from torch import nn

    class ConvReLU(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cudnn_convolution_relu(
                x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )

    class LinearGELU(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.flatten(0, -2)
            made = torch._addmm_activation(self.bias, flat, self.weight.T, use_gelu=True)
            return made.unflatten(0, x.shape[:-1])

    return {nn.Conv2d: ConvReLU, nn.Linear: LinearGELU}


def _followers(
    model: nn.Module, images: torch.Tensor, kinds: Mapping[type, type]
) -> tuple[dict[nn.Module, nn.Module], torch.Tensor]:
    """Which modules of the kinds that are keys take in the output of a layer of the other kind.

    Seen from a forward pass, whose feature maps are returned, too. Modules that are used more than
    once are left out.
    """
    outputs, sources, calls, hooks = {}, {}, Counter(), []

    def after(module, inputs, output):
        calls[module] += 1
        outputs[id(output)] = module, output  # held, so that no other tensor gets its id

    def before(module, inputs, kind):
        calls[module] += 1
        source = outputs.pop(id(inputs[0]), (None,))[0]
        if isinstance(source, kind):
            sources[module] = source

    for module in model.modules():
        if isinstance(module, tuple(kinds.values())):
            hooks.append(module.register_forward_hook(after))
        for follower, kind in kinds.items():
            if isinstance(module, follower):
                hook = functools.partial(before, kind=kind)
                hooks.append(module.register_forward_pre_hook(hook))
    features = model.forward_features(images)
    for hook in hooks:
        hook.remove()
    once = {m: source for m, source in sources.items() if calls[m] == calls[source] == 1}
    return once, features


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def normalise(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (B, H, W, 3) -> float32 (B, 3, H, W), channels-last, on the backbone's scale."""
    import torch

    scale = backbone.preprocessing
    factor, offset = _scale(tuple(scale["mean"]), tuple(scale["std"]), images.device)
    return torch.addcmul(offset, images.permute(0, 3, 1, 2).float(), factor)


_SCALES: dict = {}  # not functools.cache: torch.compile warns of that


def _scale(mean: tuple, std: tuple, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and -mean / std, moved to the device once: each copy would wait for it."""
    import torch

    if (mean, std, device) not in _SCALES:
        m, s = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        pair = 1 / (255 * s), -m / s
        _SCALES[mean, std, device] = tuple(tensor.float().to(device) for tensor in pair)
    return _SCALES[mean, std, device]


def embed(backbone: Backbone, model: nn.Module, normalised: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, d) in float32 of normalised images (B, 3, H, W)."""
    import torch

    features = model.forward_features(normalised)
    if backbone.embedding == "gap":
        return features.mean((2, 3), dtype=torch.float32)
    first = features[:, 0].float()
    if backbone.embedding == "cls":
        return first
    patches = features[:, model.num_prefix_tokens :].mean(1, dtype=torch.float32)
    return torch.cat([first, patches], dim=1)


def local_features(model: nn.Module, normalised: torch.Tensor) -> torch.Tensor:
    """What a network sees where: its patch tokens, or its last feature map, as (B, h, w, d)."""
    features = model.forward_features(normalised).float()
    if features.ndim == 4:
        return features.permute(0, 2, 3, 1)
    patches = features[:, model.num_prefix_tokens :]
    return patches.unflatten(1, (round(patches.shape[1] ** 0.5),) * 2)
