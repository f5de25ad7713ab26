"""Draws of test patients, and draws of training and validation patients.

In a resample each patient counts Poisson(1) times (the Poisson bootstrap: Hanley & MacGibbon,
Comput. Methods Programs Biomed. 83, 2006). A patient's counts depend on the patient's id alone. So
all tasks about the same people share their draws, even if some people lack a modality.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from scipy import stats

TEST, TRAINING = 0, 1  # the seeds of the two kinds of draws, so that they are independent
# The inverse of Poisson(1)'s distribution at 65,536 levels, so that 16 random bits give a count.
COUNTS = stats.poisson.ppf((np.arange(1 << 16) + 0.5) / (1 << 16), 1).astype(np.uint8)


def counts(patients: Sequence, first: int, last: int, seed: int = TEST) -> np.ndarray:
    """How often each patient is drawn in the resamples ``first`` to ``last`` - 1: (B, n) uint8.

    Each patient has a separate random stream (SplitMix64: Steele et al., OOPSLA 2014) that starts
    from the patient's id and ``seed``. One random number gives the counts of four resamples.
    """
    start = _starts(tuple(patients), seed)
    steps = np.arange(first // 4, -(-last // 4), dtype=np.uint64)
    state = start + (steps * np.uint64(0x9E3779B97F4A7C15))[:, None]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    drawn = COUNTS[state.astype("<u8").view("<u2").reshape(*state.shape, 4)]
    return drawn.transpose(0, 2, 1).reshape(-1, len(start))[first % 4 :][: last - first]


@functools.lru_cache(8)  # hashing takes longer than drawing, and chunks of resamples share it
def _starts(patients: tuple, seed: int) -> np.ndarray:
    digests = [hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8] for patient in patients]
    return np.frombuffer(b"".join(digests), dtype="<u8")
