"""Arms whose costs can be compared: the same share of the labels, the same image size."""

import pandas as pd

KEYS = ["task", "label_fraction"]
TWINS = ["task", "backbone", "pretraining", "label_fraction"]  # differ in the regime only
OTHER_LABELS, OTHER_SIZE = "other shares of the labels", "another image size"


def comparable(arms: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The arms that differ in backbone and regime only, and why regimes were left out.

    ``arms`` has a row for each arm and task: task, backbone, pretraining, regime, label_fraction,
    image_size (pixels) and what is compared. The frozen regime comes first, then the others. A
    regime is left out if a task has no label fraction in common with the regimes before
    (:data:`OTHER_LABELS`), or if a backbone has another image size than its frozen twin
    (:data:`OTHER_SIZE`). Of each task the rows at the largest common label fraction are returned.
    """
    regimes = sorted(arms["regime"].unique(), key=lambda name: (name != "frozen", name))
    kept, left_out, common = [], {}, arms[KEYS].drop_duplicates()
    for regime in regimes:
        own = arms[arms["regime"] == regime]
        shared = common.merge(own[KEYS].drop_duplicates())
        twins = own.merge(arms[arms["regime"].isin(kept)], on=TWINS).merge(shared)
        if shared["task"].nunique() < arms["task"].nunique():
            left_out[regime] = OTHER_LABELS
        elif (twins["image_size_x"] != twins["image_size_y"]).any():
            left_out[regime] = OTHER_SIZE
        else:
            kept, common = [*kept, regime], shared
    most = common.groupby("task", as_index=False)["label_fraction"].max()
    return arms[arms["regime"].isin(kept)].merge(most), left_out
