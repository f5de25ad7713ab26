"""Backbones as PyTorch networks: build one, load its weights, embed images with it."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import RotaryEmbeddingDinoV3
from torch import nn
from torch.nn import functional

from medlib import files
from medlib.core.backbones import Backbone, check_image_size, get, timm_config
from medlib.core.fast import transfer
from medlib.core.weights import find_weights
from medlib.errors import unknown


def build(name: str, image_size: int, seed: int = 0) -> tuple[nn.Module, str]:
    """A backbone without its classifier, in evaluation mode, and the digest of its weights.

    Pretrained weights are loaded strictly: a parameter without a value is an error. The control
    arm is initialised from ``seed``. The digest is the sha256 of the weights file, or ``random-``
    and the digest of the initial values. Raises ValueError for an unknown name, and for an image
    size, an embedding or weights that do not fit; FileNotFoundError if no weights are found.
    """
    backbone = get(name)
    check_image_size(backbone, image_size)
    timm_config(backbone)  # raises ValueError for an unknown architecture
    path = None if backbone.pretraining == "random" else find_weights(backbone)
    given = ({"img_size": image_size} if backbone.patch > 1 else {}) | dict(backbone.build)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(backbone.architecture, num_classes=0, **given)
    except (TypeError, AssertionError, ValueError) as error:
        way_out = "patch is for networks that are built for one image size; see build, too."
        raise ValueError(f"{name} cannot be built with {given} ({error}): {way_out}") from error
    if backbone.rounded_periods:
        round_periods(model, name)
    _check(model.eval(), backbone, image_size)
    if path is None:
        digest = "random-" + state_digest(model)
    else:
        load(model, backbone, path)
        digest = files.file_sha256(path)
    if backbone.embedding != "pool" and hasattr(model, "pre_logits"):
        model.pre_logits = nn.Identity()  # VGG's fully connected layers come after the embedding
    return model, digest


@torch.no_grad()
def _check(model: nn.Module, backbone: Backbone, image_size: int) -> None:
    """Embed an image of noise. Raises ValueError if the row does not fit its network."""
    row, patch = f"{backbone.name} in medlib/core/backbones.yaml", getattr(model, "patch_embed", 0)
    (own, *_) = getattr(patch, "patch_size", None) or (1,)
    if backbone.patch % own:
        raise ValueError(
            f"{row}: patch is {backbone.patch}, but the network's patches have {own} × {own} "
            f"pixels. Set patch to {own}, or to a multiple that the image size must have."
        )
    noise = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    try:
        features = model.forward_features(noise)
        published = model.forward_head(features, pre_logits=True)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{backbone.name} cannot embed images of {image_size} pixels: {error}. If it is built "
            f"for one image size, set patch in {row}: the image size is a multiple of it."
        ) from error
    tokens = features.ndim == 3 and getattr(model, "cls_token", None) is not None
    choices = ("cls", "cls+patches", "pool") if tokens else ("gap", "pool")
    choices += ("cls4+patches",) * (tokens and len(model.blocks) >= 4)
    if backbone.embedding not in choices:
        raise ValueError(f"{row}: {unknown('embedding', backbone.embedding, choices)}")
    deep = backbone.embedding == "cls4+patches"
    found = _of_last_blocks(model, noise) if deep else _pooled(backbone, model, features)
    if found.shape != (1, width(backbone, model)):
        shape, wanted = tuple(found.shape[1:]), width(backbone, model)
        raise ValueError(f"{row}: its embeddings have the shape {shape}, and not ({wanted},).")
    similar = published.shape != found.shape or torch.allclose(published, found, rtol=1e-3)
    if backbone.embedding == "gap" and not similar:
        raise ValueError(f"{row}: its classifier has a norm after pooling. Set embedding to pool.")


def load(model: nn.Module, backbone: Backbone, path: Path) -> None:
    """Load a file of weights into a model of :func:`build`; raises ValueError if it does not fit.

    Position embeddings fit the image size of pretraining. They are resampled for the model's.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    if backbone.position_offset:
        n = round((model.pos_embed.shape[1] - 1) ** 0.5)
        state["pos_embed"] = positions(state["pos_embed"], n, backbone.position_offset)
    if adapt := checkpoint_filter(model):
        state = adapt(state, model)
    classifiers = timm_config(backbone)["classifier"]  # some networks have two
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    heads = tuple(f"{classifier.partition('.')[0]}." for classifier in classifiers)
    misfit = f"{path} does not fit {backbone.name} ({backbone.architecture})"
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # the same names, other shapes
        shapes = " ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"{misfit}: {shapes}") from error
    unexpected = [key for key in result.unexpected_keys if not key.startswith(heads)]
    if result.missing_keys or unexpected:
        lacks, extra = result.missing_keys[:5], unexpected[:5]
        raise ValueError(f"{misfit}: it lacks {lacks} and has {extra} too many.")
    # Batch norm that was folded into the convolutions is the identity. In training it would
    # standardise by the batch after all, and destroy what was learned.
    if (folded := folded_norm(model)) != backbone.fixed_norm:
        raise ValueError(
            f"In {path} batch norm is {'' if folded else 'not '}folded into the "
            f"convolutions: set fixed_norm={folded} in the row of {backbone.name} in "
            "medlib/core/backbones.yaml, so that it is fine-tuned accordingly."
        )


def checkpoint_filter(model: nn.Module) -> Callable | None:
    """timm's function that adapts names and image size of weights to this network, or None."""
    return getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)


def positions(embeddings: torch.Tensor, n: int, offset: float) -> torch.Tensor:
    """Position embeddings (1, 1 + m², d), class token first, resampled to (1, 1 + n², d).

    The code of DINOv2 without registers does the same, with an offset of 0.1 (arXiv 2304.07193).
    """
    first, patches = embeddings[:, :1], embeddings[:, 1:]
    m = round(patches.shape[1] ** 0.5)
    if n == m:
        return embeddings
    square, scale = patches.unflatten(1, (m, m)).permute(0, 3, 1, 2), (n + offset) / m
    moved = functional.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([first, moved.flatten(2).mT], dim=1)


class RoundedPeriods(RotaryEmbeddingDinoV3):
    """DINOv3's rotary positions, with periods rounded to bfloat16 as in its files, not in timm."""

    def _compute_periods(self, *given, **named) -> torch.Tensor:
        periods = super()._compute_periods(*given, **named)
        return periods.bfloat16().to(periods)


def round_periods(model: nn.Module, name: str) -> None:
    """Give a network :class:`RoundedPeriods`; raises ValueError if it has other positions."""
    if not isinstance(rope := getattr(model, "rope", None), RotaryEmbeddingDinoV3):
        raise ValueError(f"{name}: rounded_periods is for the rotary positions of DINOv3.")
    rope.__class__ = RoundedPeriods
    rope.init_non_persistent_buffers()


def folded_norm(model: nn.Module) -> bool:
    """Whether a model has batch norm whose running statistics were never updated from data."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    centred = all(norm.running_mean.eq(0).all() for norm in norms)
    return bool(norms) and centred and all((n.running_var - 1).abs().max() < 1e-3 for n in norms)


def state_digest(model: nn.Module) -> str:
    """sha256 (16 digits) over all parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def normalise(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (B, H, W, 3) -> float32 (B, 3, H, W), channels-last, on the backbone's scale."""
    scale = backbone.preprocessing
    factor, offset = transfer.scale(scale["mean"], scale["std"], images.device)
    return torch.addcmul(offset, images.permute(0, 3, 1, 2).float(), factor)


def width(backbone: Backbone, model: nn.Module) -> int:
    """The width d of a backbone's embeddings."""
    if backbone.embedding == "pool":
        return model.head_hidden_size
    return model.num_features * {"cls+patches": 2, "cls4+patches": 5}.get(backbone.embedding, 1)


def embed(backbone: Backbone, model: nn.Module, normalised: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, d) in float32 of normalised images (B, 3, H, W)."""
    if backbone.embedding == "cls4+patches":
        return _of_last_blocks(model, normalised)
    return _pooled(backbone, model, model.forward_features(normalised))


def _of_last_blocks(model: nn.Module, normalised: torch.Tensor, n: int = 4) -> torch.Tensor:
    """The class tokens of the last blocks, and the mean of the patch tokens of the last one.

    Each goes through the final norm, as in the linear evaluation of DINOv2 (arXiv 2304.07193).
    """
    asked = {"norm": True, "return_prefix_tokens": True, "intermediates_only": True}
    layers = model.forward_intermediates(normalised, n, output_fmt="NLC", **asked)
    tokens = [prefix[:, 0].float() for _, prefix in layers]
    tokens.append(layers[-1][0].mean(1, dtype=torch.float32))
    return torch.cat([_final_norm(model, each) for each in tokens], dim=1)


def _pooled(backbone: Backbone, model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, d) in float32 from the output of ``forward_features``."""
    if backbone.embedding == "pool":
        return model.forward_head(features, pre_logits=True).float()
    if features.ndim == 4:
        return _rows_and_columns(model, features).mean((1, 2), dtype=torch.float32)
    patches = _patches(model, features).mean(1, dtype=torch.float32)
    if backbone.embedding == "gap":
        return _final_norm(model, patches)
    first = _final_norm(model, features[:, 0].float())
    if backbone.embedding == "cls":
        return first
    return torch.cat([first, _final_norm(model, patches)], dim=1)


def _rows_and_columns(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """A feature map as (B, h, w, d). The network says which layout it uses."""
    return features if getattr(model, "output_fmt", "") == "NHWC" else features.permute(0, 2, 3, 1)


def _patches(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Patch tokens (B, n, d), without the class token and the registers."""
    return features[:, getattr(model, "num_prefix_tokens", 0) or 0 :]


def _final_norm(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Apply the norm of the head: BEiT and EVA02 have their last norm there."""
    norm = getattr(model, "fc_norm", None) or nn.Identity()
    kept = isinstance(norm, nn.Identity)
    return tokens if kept else norm(tokens.to(next(norm.parameters()).dtype)).float()


def local_features(model: nn.Module, normalised: torch.Tensor) -> torch.Tensor:
    """Local features (B, h, w, d): a network's patch tokens, or its last feature map."""
    features = model.forward_features(normalised).float()
    if features.ndim == 4:
        return _rows_and_columns(model, features)
    patches = _patches(model, features)
    return patches.unflatten(1, (round(patches.shape[1] ** 0.5),) * 2)
