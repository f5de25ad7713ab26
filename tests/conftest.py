"""Fixtures that all tests share: real data and devices, or a skip if there are none."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: tests run side by side, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def no_weights_of_others(monkeypatch, tmp_path):
    """Give each test its own lock and folder of weights, so that tests do not affect each other."""
    monkeypatch.setattr("medlib.zoo.hub.LOCK", tmp_path / "weights.lock.json")
    monkeypatch.setattr("medlib.core.weights.FOLDER", tmp_path / "fetched")


@pytest.fixture(autouse=True)
def cpu_without_bfloat16(monkeypatch):
    """Use the same precision on every machine; tests of bfloat16 change this."""
    monkeypatch.setattr("medlib.core.fast.engine.cpu_has_bfloat16", lambda: False)


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("MEDLIB_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MEDLIB_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture
def cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return "cuda"


@pytest.fixture
def small_disk(request, tmp_path) -> Iterator[Path]:
    """A folder on a disk of its own: one megabyte, or as many as a test's parameter says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={getattr(request, 'param', 1)}m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
