"""The record of the environment: versions, git commit, hardware, and the memory that was used."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

MEDLIB = Path(__file__).resolve().parent
PACKAGES = ("medlib", "torch", "torchvision", "timm", "peft", "numpy", "scikit-learn", "pandas")


def shipped(folder: str) -> Path:
    """A folder of the repository, such as ``data_manifests``: beside medlib in a clone.

    Where medlib is installed without a clone, pyproject.toml has put the folder into the package.
    """
    inside = MEDLIB / folder
    return inside if inside.is_dir() else MEDLIB.parent / folder


def _git_commit() -> str | None:
    command = ["git", "-C", str(MEDLIB), "describe", "--always", "--dirty"]
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
    """Peak resident memory of this process, and of the GPU where one was used, in bytes.

    None for the GPU where there is none, and for the process where the system does not tell it.
    """
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "resident": _peak_resident(),
        "gpu": torch.cuda.max_memory_allocated() if cuda else None,
    }


def _peak_resident() -> int | None:
    if resource:
        # ru_maxrss is in kilobytes on Linux and in bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with contextlib.suppress(ImportError):
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows only
    return None


def full_disk(folder: Path | str) -> str:
    """What to do when the disk of a folder is full."""
    full = f"The disk of {folder} is full, or your quota"
    return f"{full}: make room and call the same command again."
