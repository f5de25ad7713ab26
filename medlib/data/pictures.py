"""One picture of each sample, from a pack: an image, or the central slice of a volume."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medlib.data.packs import Pack
from medlib.errors import listed


def central(index: pd.DataFrame, samples: Sequence[str]) -> np.ndarray:
    """The row of each sample in a pack's ``index``, (n,). For a volume it is its central slice.

    Raises ValueError that lists the samples that the pack does not have.
    """
    rows = pd.DataFrame({"sample": index["sample_id"], "slice": index["slice"].astype(int)})
    by_slice = rows.assign(row=np.arange(len(rows))).sort_values("slice", kind="stable")
    middle = by_slice.groupby("sample")["row"].agg(lambda of: of.iloc[len(of) // 2])
    if missing := [name for name in samples if name not in middle.index]:
        way_out = "Run notebook 01_prepare_data for this task again."
        raise ValueError(f"Samples without a packed image:\n{listed(missing)}\n{way_out}")
    return middle.loc[list(samples)].to_numpy(int)


def of_samples(pack: Pack, samples: Sequence[str]) -> np.ndarray:
    """The picture of each sample: uint8 (n, H, W, 3), read into memory.

    Raises ValueError as :func:`central` does, and for a picture that is damaged.
    """
    rows = central(pack.index, samples)
    read = np.asarray(pack.images[rows])
    pack.images.check(rows, read)
    return read
