"""Backbones as PyTorch networks: build one, load its weights, embed images with it."""

import hashlib
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from medlib import files
from medlib.core.backbones import Backbone, check_image_size, get, timm_config
from medlib.core.weights import check, find_weights


def build(name: str, image_size: int, seed: int = 0) -> tuple[nn.Module, str]:
    """A backbone without its classifier, in evaluation mode, and the digest of its weights.

    Pretrained weights are loaded strictly: a parameter without a value is an error. The control
    arm is initialised from ``seed``. The digest is the sha256 of the weights file, or ``random-``
    and that of the initial values. Raises ValueError for an unknown name or an image size that
    does not fit, and for weights that have changed since their first use; FileNotFoundError when
    no weights are found.
    """
    backbone = get(name)
    check_image_size(backbone, image_size)
    path = None if backbone.pretraining == "random" else find_weights(backbone)
    size = {"img_size": image_size} if backbone.patch > 1 else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(backbone.architecture, num_classes=0, **size, **backbone.build)
    if path is None:
        digest = "random-" + state_digest(model)
    else:
        load(model, backbone, path)
        digest = files.file_sha256(path)
        check(backbone, path, digest)
    if hasattr(model, "pre_logits"):  # VGG's fully connected layers come after the embedding
        model.pre_logits = nn.Identity()
    return model.eval(), digest


def load(model: nn.Module, backbone: Backbone, path: Path) -> None:
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    if backbone.patch > 1:
        # Position embeddings come for the size of pretraining; timm resamples them for ours.
        state = checkpoint_filter_fn(state, model)
    classifier = timm_config(backbone)["classifier"]
    misfit = f"{path} does not fit {backbone.name} ({backbone.architecture})"
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # the same names, other shapes
        shapes = " ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"{misfit}: {shapes}") from error
    unexpected = [key for key in result.unexpected_keys if not key.startswith(f"{classifier}.")]
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
    factor, offset = _scale(scale["mean"], scale["std"], images.device)
    return torch.addcmul(offset, images.permute(0, 3, 1, 2).float(), factor)


_SCALES: dict = {}  # not functools.cache: torch.compile warns of that


def _scale(mean: tuple, std: tuple, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and -mean / std; kept on the device, since each copy would wait for it."""
    if (mean, std, device) not in _SCALES:
        m, s = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        pair = 1 / (255 * s), -m / s
        _SCALES[mean, std, device] = tuple(tensor.float().to(device) for tensor in pair)
    return _SCALES[mean, std, device]


def embed(backbone: Backbone, model: nn.Module, normalised: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, d) in float32 of normalised images (B, 3, H, W)."""
    features = model.forward_features(normalised)
    if backbone.embedding == "gap":
        return features.mean((2, 3), dtype=torch.float32)
    first = features[:, 0].float()
    if backbone.embedding == "cls":
        return first
    patches = features[:, model.num_prefix_tokens :].mean(1, dtype=torch.float32)
    return torch.cat([first, patches], dim=1)


def local_features(model: nn.Module, normalised: torch.Tensor) -> torch.Tensor:
    """Local features (B, h, w, d): a network's patch tokens, or its last feature map."""
    features = model.forward_features(normalised).float()
    if features.ndim == 4:
        return features.permute(0, 2, 3, 1)
    patches = features[:, model.num_prefix_tokens :]
    return patches.unflatten(1, (round(patches.shape[1] ** 0.5),) * 2)
