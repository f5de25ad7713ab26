"""The record of the environment: versions, git commit, hardware, and the memory that was used."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

PACKAGES = ("medlib", "torch", "torchvision", "timm", "peft", "numpy", "scikit-learn", "pandas")


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


def full_disk(folder: Path | str) -> str:
    """What to do when the disk of a folder is full."""
    full = f"The disk of {folder} is full, or your quota"
    return f"{full}: make room and call the same command again."
