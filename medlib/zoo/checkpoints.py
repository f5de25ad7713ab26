"""Read published files of weights, and find in them the tensors of a timm network.

No code in a file is run. A file often holds the network under a prefix (``model.``, ``teacher.``,
``module.``, ``visual.trunk.`` …). The prefix is the one under which most of the network's own names
are found; there is no list of prefixes.
"""

import argparse
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from medlib import files
from medlib.core import networks
from medlib.core.backbones import Backbone, timm_config
from medlib.errors import listed
from medlib.zoo import transformers

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
# A file may hold these beside tensors: settings and counters of a training. They run no code.
HARMLESS = [argparse.Namespace, np.dtype, np.float64, np.float32, np.int64]
HARMLESS += [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
HARMLESS += [np.float64(0).__reduce__()[0]]  # the function that makes a scalar
# If a file holds several copies of a network, the averaged copy is used: authors evaluate that.
AVERAGED = re.compile(r"teacher|ema|momentum")
# Parts that only the pretraining used, and rotary positions, which timm makes. They are left out.
SET_ASIDE = re.compile(
    r"(.*\.)?(\w*head\w*|fc|classifier|decoder\w*|mask_token|pooler|proj\w+|rope_embed)\.?"
)
# These are resampled when they are loaded, so their shapes may differ.
RESAMPLED = re.compile(r"pos_embed|relative_position|rel_pos|attention_bias")


@dataclass
class Fitted:
    """The tensors of a backbone, and where they were found."""

    state: dict[str, torch.Tensor]
    found_under: str  # the prefix of their names in the file
    naming: str  # the library whose names they had in the file
    set_aside: Counter  # how many tensors of which part are left out


def read(path: Path | str) -> dict[str, torch.Tensor]:
    """Read all tensors of a file, by their dotted names. Raises ValueError if that is impossible.

    A nested dict gives names such as ``teacher.backbone.cls_token``. Values that are no tensors are
    left out. A file that would have to run code to be read is refused.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is none of the known kinds of files: {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{refused[1]}, which could run code" if refused else "no tensors"
        way_out = "Ask its authors for a safetensors file, or save its state_dict alone."
        raise ValueError(f"{path} is not read: it holds {what}. {way_out}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        if "TorchScript" in str(error):
            way_out = "Save what torch.jit.load(file).state_dict() gives, and convert that."
            raise ValueError(f"{path} is a TorchScript archive. {way_out}") from error
        raise ValueError(f"{path} cannot be read; is it complete? ({error})") from error
    tensors = dict(_flat(content))
    if not tensors:
        raise ValueError(f"{path} holds no tensors.")
    return tensors


def _flat(content: object, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(content, torch.Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}{name}.")


def network(row: Backbone) -> torch.nn.Module:
    """The network of a row: no classifier, no values, and the image size of its weights."""
    timm_config(row)  # raises ValueError for an unknown architecture
    with torch.device("meta"):
        return timm.create_model(row.architecture, num_classes=0, **row.build)


def fit(tensors: dict[str, torch.Tensor], row: Backbone, path: Path | str) -> Fitted:
    """Find a row's network in the tensors of a file. Raises ValueError that lists all misfits."""
    model = network(row)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    naming, under = _best(tensors, model, wanted)
    state = _namings(model)[naming](_below(tensors, under))
    aside = Counter(name.partition(".")[0] for name in tensors if not name.startswith(under))
    for name in [name for name in state if name not in wanted]:
        zero = name.endswith(".bias") and not state[name].any()  # timm's DINOv3 leaves these out
        if SET_ASIDE.match(name) or zero:
            aside[name.partition(".")[0]] += 1
            del state[name]
    lacking = [name for name in wanted if name not in state]
    left_over = [name for name in state if name not in wanted]
    shapes = [
        f"{name} has the shape {tuple(state[name].shape)}, and not {tuple(wanted[name])}"
        for name in wanted
        if name in state and state[name].shape != wanted[name] and not RESAMPLED.search(name)
    ]
    problems = [f"{len(lacking)} are missing: {', '.join(lacking[:5])} …"] * bool(lacking)
    problems += [f"{len(left_over)} are left over: {', '.join(left_over[:5])} …"] * bool(left_over)
    problems += shapes[:5]
    if problems:
        said = f"{path} does not fit {row.name} ({row.architecture}, {len(wanted)} tensors):"
        raise ValueError(f"{said}\n{listed(problems)}\n{_reason(state, wanted)}".strip())
    return Fitted(state, under, naming, aside)


def write(fitted: Fitted, path: Path, source: str = "") -> str:
    """Write tensors as safetensors; the file says what its ``source`` is. Returns its sha256.

    Raises ValueError if another file has that name already.
    """
    tensors = {name: tensor.contiguous() for name, tensor in fitted.state.items()}
    with files.replacing(path) as made:
        save_file(tensors, made, metadata={"source": source} if source else None)
        digest = files.file_sha256(made)
        if path.is_file() and files.file_sha256(path) != digest:
            way_out = "Remove it first, or choose another folder (--to)."
            raise ValueError(f"{path} is there and differs. {way_out}")
    return digest


def source(path: Path) -> str:
    """What a file of :func:`write` was made from; "" for another file."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("source", "")
    except (SafetensorError, OSError):
        return ""  # damaged: said when it is loaded


def _below(tensors: dict, prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _namings(model: torch.nn.Module) -> dict[str, Callable]:
    """Functions that rename tensors to timm's names, by the library that the old names are from."""
    adapt = networks.checkpoint_filter(model)

    def by_timm(tensors: dict) -> dict:
        try:
            return dict(adapt(dict(tensors), model))
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError):
            return {}  # timm's function does not know these names

    own = {"its authors' (converted by timm)": by_timm} if adapt else {}
    return {"timm": dict, **transformers.NAMINGS, **own}


def _best(tensors: dict, model: torch.nn.Module, wanted: dict) -> tuple[str, str]:
    """The naming and the prefix that give most of the wanted names."""
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    best = (-1, False, "timm", "")
    for naming, rename in _namings(model).items():
        for under in _prefixes(tensors):
            renamed = rename(_below(shapes, under))
            score = sum(name in wanted for name in renamed), bool(AVERAGED.search(under))
            if score > best[:2]:
                best = (*score, naming, under)
        if best[0] == len(wanted):
            break  # all are there: no other naming can have more
    return best[2:]


def _prefixes(names: Mapping) -> list[str]:
    """All prefixes of names, up to the first number. "a.b.0.c" gives "", "a." and "a.b."."""
    found = {""}
    for name in names:
        parts = name.split(".")
        for n in range(1, len(parts)):
            if parts[n - 1].isdigit():
                break
            found.add(".".join(parts[:n]) + ".")
    return sorted(found)


def _reason(state: dict, wanted: dict) -> str:
    """A sentence with the likeliest reason for a misfit, or ""."""
    told, other = facts(state), facts(wanted)
    differ = [what for what in told if other.get(what) not in (None, told[what])]
    if not differ:
        return ""
    words = "; ".join(f"{what}: {told[what]}, not {other[what]}" for what in differ)
    return f"It looks like another architecture ({words})."


def facts(state: Mapping) -> dict[str, object]:
    """The width, patch size and number of blocks of a network, from its tensors."""
    shapes = {name: tuple(getattr(value, "shape", value)) for name, value in state.items()}
    told = {}
    if patches := shapes.get("patch_embed.proj.weight"):
        told |= {"width": patches[0], "patch": patches[-1]}
    numbers = [int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))]
    told |= {"blocks": max(numbers) + 1} if numbers else {}
    told |= {"registers": shapes["reg_token"][1]} if "reg_token" in shapes else {}
    if stages := {name.split(".")[1] for name in shapes if name.startswith("stages.")}:
        told["stages"] = len(stages)
    return told
