"""What all tests share: where real data and devices are, and a skip where they are not."""

import os
from pathlib import Path

# Before torch is imported: tests run side by side, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


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
