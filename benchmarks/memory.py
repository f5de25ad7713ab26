"""Peak resident memory of 100,000 packed images: ViT-S extraction, and reading for fine-tuning.

The pack is a sparse file: it takes no room on the disk, and is read like any other. Extraction runs
in a process of its own, whose peak is read when it ends. It runs at 112 px: there the pack (3.8 GB)
is already larger than the bound, and the network takes a quarter of the time at 224 px, so all
images can be embedded. Reading goes through all images of a pack at 224 px (15 GB) in random order.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
import pandas as pd

from medlib import files
from medlib.data import packs

LIMIT = 3 * 2**30  # bytes
EXTRACT = """
import sys
from medlib import environment
from medlib.data import embeddings, packs
pack = packs.load(sys.argv[1])
embeddings.extract(pack, "dinov2_small-random", sys.argv[2])
print(environment.peak_memory_bytes()["resident"])
"""
READ = """
import sys
import numpy as np
from medlib import environment
from medlib.core import loading
from medlib.data import packs
pack = packs.load(sys.argv[1])
order = np.random.default_rng(0).permutation(len(pack.images))
for batch in loading.batches(pack.images, np.array_split(order, len(order) // 16), "cpu"):
    batch[0, 0, 0, 0].item()
print(environment.peak_memory_bytes()["resident"])
"""


def sparse_pack(folder: Path, n: int, size: int) -> Path:
    """A pack of ``n`` black images that holds no block on the disk."""
    folder.mkdir()
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (n, size, size, 3))
    ids = [f"{number:06d}" for number in range(n)]
    index = pd.DataFrame({"sample_id": ids, "patient_id": ids, "label": "a", "split": "train"})
    index.to_csv(folder / "index.csv", index=False)
    (digest,) = packs.image_digests(np.zeros((1, size, size, 3), np.uint8))
    np.save(folder / "digests.npy", np.full(n, digest))
    meta = {"hash": "sparse", "size": size, "interpolation": "bicubic"}
    small = "index.csv", "digests.npy"
    meta["sha256"] = {name: files.file_sha256(folder / name) for name in small}
    files.save_json(folder / "meta.json", meta | {"mask_at_test_time": False})
    return folder


def peak(code: str, *arguments: Path) -> int:
    """The peak resident memory, in bytes, that a script prints last."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    options = harness.arguments(__doc__)
    n = 50 if options.quick else 100_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = sparse_pack(folder / "small", n // 50, 112)
        large = sparse_pack(folder / "large", n, 112)
        wide = sparse_pack(folder / "wide", n, 224)
        few = peak(EXTRACT, small, folder / "a")
        for name, found in (
            (f"memory, ViT-S extraction, {n:,} images", peak(EXTRACT, large, folder / "b")),
            (f"memory, reading {n:,} images at random", peak(READ, wide)),
        ):
            common = {"value": found / 2**30, "unit": "GiB", "quick": options.quick}
            harness.report(name, "the bound of 3 GiB", LIMIT / found, target=1.0, **common)
            if "extraction" in name:
                peer = f"the same of {n // 50:,} images"
                harness.report(name, peer, few / found, target=None, **common)


if __name__ == "__main__":
    main()
