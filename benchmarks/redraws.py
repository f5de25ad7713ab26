"""Training the linear head again after 100 draws of its patients, against the sweep without it.

The sweep is that of the pocket grid for one task and backbone: three heads, six shares of the
labels, three seeds. The sizes are those of the grid's tasks; the embeddings are random numbers.
"""

import numpy as np
import pandas as pd
from harness import arguments, contest

from medlib.core import heads, metrics
from medlib.data import manifest
from medlib.stats.redraws import redrawn_metrics

FRACTIONS, SEEDS, REDRAWS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01), (0, 1, 2), 100
# task: patients, images of each, classes, folds (0: an official split)
TASKS = {"glioma": (100, 5, 2, 5), "chest": (2000, 2, 2, 0), "dermoscopy": (7470, 1, 7, 5)}


def case(patients: int, images: int, k: int, folds: int, d: int) -> tuple:
    """Embeddings (n, d) of which a few features tell the class, and their index."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(patients), images)
    y = owner % k
    x = rng.normal(size=(len(y), d)).astype(np.float32)
    x[:, :k] += np.eye(k, dtype=np.float32)[y]
    names = [f"{p:05d}" for p in owner]
    index = pd.DataFrame({"sample_id": [f"{i:06d}" for i in range(len(y))], "patient_id": names})
    index["label"] = [f"class{label}" for label in y]
    sides = np.repeat(["train", "val", "test"], [6, 2, 2])
    index["fold" if folds else "split"] = owner // k % folds if folds else sides[owner // k % 10]
    return x, index, [f"class{label}" for label in range(k)]


def main() -> None:
    options = arguments(__doc__)
    tasks = {"tiny": (60, 1, 2, 3)} if options.quick else TASKS
    for name, size in tasks.items():
        for d in (8,) if options.quick else (192, 1280):
            x, index, classes = case(*size, d)
            y = metrics.codes(index["label"], classes)
            rotations = manifest.rotations(index)
            runs = [
                (head, seed, manifest.rotations(index, fraction, seed))
                for head in heads.HEADS
                for fraction in ((1.0,) if options.quick else FRACTIONS)
                for seed in SEEDS
                if fraction < 1 or head == "mlp" or seed == 0
            ]

            def sweep(x=x, y=y, index=index, runs=runs, classes=classes):
                list(heads.sweep(x, y, index["sample_id"], runs, n_classes=len(classes)))

            def redraw(x=x, index=index, rotations=rotations, classes=classes):
                n = 2 if options.quick else REDRAWS
                redrawn_metrics(x, index, rotations, classes, n)

            contest(
                f"{REDRAWS} redraws, {name}, d = {d}",
                "the sweep without them",
                {"peer": sweep, "ours": redraw},
                1,
                target=0.333,
                quick=options.quick,
            )


if __name__ == "__main__":
    main()
