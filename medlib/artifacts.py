"""Where every file of a study lives, and how it is written.

A results folder (``results/<grid>``) holds::

    manifests/<task>.csv, .yaml                     samples, patients, splits, hashes; the card
    images/<task>/<size>-<interpolation>/           packed uint8 images and their index
    features/<task>/<backbone>/                     embeddings, index, meta
    runs/<task>/<backbone>/<regime>/seed<s>/        predictions, history, metrics, run.json
    runs/<task>/<backbone>/intervals.json           the summary's rows of these runs
    summary.csv, summary_over_seeds.csv             every metric with its interval

Every file is written under a temporary name and renamed, so that a reader never meets half of
one. A run is complete when its ``run.json`` exists: it is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

PACKAGES = ("medlib", "torch", "torchvision", "timm", "peft", "numpy", "scikit-learn", "pandas")
REGIMES = ("frozen", "finetuned", "lora")
TRAINED = REGIMES[1:]  # those in which the backbone itself learns
CHECKPOINT = "checkpoint.safetensors"  # of a run that is not complete


# ---------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it becomes ``path``, else it is removed.

    Works for a file and for a folder (an existing folder is replaced).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = handle / path.name
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            # A folder cannot be renamed over a full one; set the old one aside first.
            os.rename(path, handle / "replaced")
        try:
            os.replace(temporary, path)
        except OSError:
            if (handle / "replaced").exists() and not path.exists():
                os.rename(handle / "replaced", path)
            raise
    finally:
        shutil.rmtree(handle, ignore_errors=True)


def save_text(path: Path | str, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_json(path: Path | str, value: object) -> None:
    save_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def save_csv(path: Path | str, frame: pd.DataFrame) -> None:
    """Write a frame with floats at full precision, so that reading it back loses nothing."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def read_samples(path: Path | str) -> pd.DataFrame:
    """A table of samples: ids and labels stay text, so that "007" and "NA" are what they say."""
    text = dict.fromkeys(("sample_id", "patient_id", "label", "y_true"), str)
    return pd.read_csv(path, dtype=text, keep_default_na=False)


def read_json(path: Path | str) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------- hashes


def file_sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(*parts: object) -> str:
    """A 16-digit sha256 of frames, arrays and JSON values, the same on every machine."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pd.DataFrame):
            part = part.to_csv(index=False, lineterminator="\n")
        elif isinstance(part, np.ndarray):
            part = [part.dtype.str, list(part.shape), hashlib.sha256(part.tobytes()).hexdigest()]
        digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------ places


def data_folder(data: str, results: Path | str) -> Path:
    """The folder that holds the data sets.

    ``data`` is ``"phantoms"`` (drawn into the results folder), ``"real"`` (the folder named by
    the environment variable ``MEDLIB_DATA``) or a folder.

    Raises FileNotFoundError when the folder is not there, naming it and the ways out.
    """
    if data == "phantoms":
        return Path(results) / "phantoms"
    folder = os.environ.get("MEDLIB_DATA", "") if data == "real" else data
    if not folder:
        raise FileNotFoundError(
            "The grid asks for real data, but MEDLIB_DATA is not set. Name the folder that holds "
            "the data sets (make … DATA=folder, or the environment variable MEDLIB_DATA), or use "
            "data='phantoms'."
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"The data folder {folder!r} does not exist. Give the folder that holds the data sets "
            "(make … DATA=folder, or the environment variable MEDLIB_DATA), or use "
            "data='phantoms'."
        )
    return Path(folder)


def manifest_path(results: Path | str, task: str) -> Path:
    return Path(results) / "manifests" / f"{task}.csv"


def images_folder(results: Path | str, task: str, size: int, interpolation: str) -> Path:
    return Path(results) / "images" / task / f"{size}-{interpolation}"


def features_folder(results: Path | str, task: str, backbone: str) -> Path:
    return Path(results) / "features" / task / backbone


def run_folder(
    results: Path | str,
    task: str,
    backbone: str,
    regime: str,
    head: str = "linear",
    label_fraction: float = 1.0,
    seed: int = 0,
) -> Path:
    """The folder of one run; its name holds grid coordinates only."""
    if regime not in REGIMES:
        raise ValueError(f"Unknown regime {regime!r}; choose one of {', '.join(REGIMES)}.")
    name = f"frozen-{head}" if regime == "frozen" else regime
    if label_fraction != 1:
        name += f"-fraction{label_fraction:g}"
    return Path(results) / "runs" / task / backbone / name / f"seed{seed}"


def frozen_runs(
    heads: Iterable[str], label_fractions: Iterable[float], seeds: Iterable[int]
) -> list[dict]:
    """The (head, label_fraction, seed) of every probe that a grid asks for.

    Logistic regression and kNN on all labels have nothing random in them: only the first seed is
    run, rather than showing copies of one result as a spread of zero.
    """
    seeds, runs = list(seeds), []
    for head in heads:
        for fraction in label_fractions:
            once = head != "mlp" and fraction == 1
            runs += [
                {"head": head, "label_fraction": fraction, "seed": seed}
                for seed in (seeds[:1] if once else seeds)
            ]
    return runs


# ---------------------------------------------------------------------------------- records


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def environment() -> dict:
    """Package versions, git commit and hardware, for a run's record."""
    torch = sys.modules.get("torch")  # named only where the run has used it
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "git_commit": _git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads() if torch is not None else None,
            "gpu": torch.cuda.get_device_name() if cuda else None,
        },
    }


def peak_memory_bytes() -> dict:
    """Peak resident memory of this process, and of the GPU where one was used, in bytes."""
    # ru_maxrss is in kilobytes on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "gpu": torch.cuda.max_memory_allocated() if cuda else None,
    }


def save_run(
    folder: Path,
    *,
    coordinates: dict,
    parameters: dict,
    inputs: dict,
    predictions: pd.DataFrame,
    history: pd.DataFrame,
    metrics: dict,
    seconds: float,
    how: dict | None = None,
) -> None:
    """Write a run's files into ``folder``, ``run.json`` last; its checkpoint is done with then.

    ``coordinates``: task, backbone, pretraining, regime, head, label_fraction, seed.
    ``parameters``: everything that the run was asked for. ``inputs``: hashes of what it read
    and the digest of its weights. ``how``: what it decided by itself, such as its precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").unlink(missing_ok=True)  # until the new one is there, not complete
    save_csv(folder / "predictions.csv", predictions)
    save_csv(folder / "history.csv", history)
    save_json(folder / "metrics.json", metrics)
    record = {
        "coordinates": coordinates,
        "parameters": parameters,
        "inputs": inputs,
        "how": how or {},
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "predictions_sha256": file_sha256(folder / "predictions.csv"),
    }
    save_json(folder / "run.json", record | environment())
    (folder / CHECKPOINT).unlink(missing_ok=True)


def find_runs(results: Path | str) -> list[Path]:
    """Folders of all complete runs below ``results``, sorted."""
    return sorted(path.parent for path in (Path(results) / "runs").glob("*/*/*/*/run.json"))
