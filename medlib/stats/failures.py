"""Where backbones go wrong: errors that all of them share, the surest errors, the least sure cases.

An answer is the class with the highest uncalibrated probability, as in the confusion matrices. If
two classes are equal, it is the first one. Probabilities are averaged over the seeds of an arm. To
choose samples, they are also averaged over backbones, so that every backbone is shown on the same
samples.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medlib.stats import prediction, runs

ALL_WRONG, SUREST, LEAST_SURE = "all wrong", "surest error", "least sure"


def answers(frames: Sequence[pd.DataFrame], classes: list[str]) -> pd.DataFrame:
    """The mean probabilities of several predictions of the same samples, sorted by sample id.

    Columns: sample_id, patient_id, y_true, prob_<class>, called (the answer), probability (of the
    answer) and against (the highest probability of a class that is not the label). Raises
    ValueError if the samples differ.
    """
    columns = prediction.probability_columns(classes)
    frames = [frame.sort_values("sample_id", ignore_index=True) for frame in frames]
    made = frames[0][runs.IDENTITY].copy()
    if not all(frame[runs.IDENTITY].equals(made) for frame in frames):
        raise ValueError("These predictions are not of the same samples; run them again.")
    made[columns] = proba = np.mean([frame[columns].to_numpy() for frame in frames], axis=0)
    y, _ = prediction.arrays(made, classes)
    made["called"] = np.array(classes)[proba.argmax(1)]
    made["probability"] = proba.max(1)
    return made.assign(against=np.where(np.eye(len(classes), dtype=bool)[y], -1, proba).max(1))


def wrong_by_all(judges: Sequence[pd.DataFrame]) -> np.ndarray:
    """Which samples (n,) every backbone gets wrong; ``judges`` are the :func:`answers` of each."""
    return np.all([judge["called"] != judge["y_true"] for judge in judges], axis=0)


def shared_errors(judges: Sequence[pd.DataFrame], classes: list[str]) -> pd.DataFrame:
    """How many samples of each class every backbone gets wrong: label, n, wrong, expected.

    ``expected`` is the number that would be expected if the backbones' errors were independent
    within each class: ``n`` times the product of the backbones' error rates in this class.
    """
    label = judges[0]["y_true"]
    wrong = pd.DataFrame({i: judge["called"] != label for i, judge in enumerate(judges)})
    of_class = wrong.all(axis=1).groupby(label)
    table = pd.DataFrame({"n": of_class.size(), "wrong": of_class.sum()})
    table["expected"] = table["n"] * wrong.groupby(label).mean().prod(axis=1)
    return table.reindex(classes, fill_value=0).rename_axis("label").reset_index()


def cases(
    judges: Sequence[pd.DataFrame], classes: list[str], shared: int = 12, per_class: int = 3
) -> pd.DataFrame:
    """The samples to look at, by the mean of ``judges``: the columns of :func:`answers`, and why.

    First come up to ``shared`` samples that every backbone gets wrong, sorted by class. They are
    chosen from the classes in turn; within a class, the sample with the highest mean probability of
    a wrong class is chosen first. Then each class has up to ``per_class`` samples that the mean
    gets wrong, in the same order, and up to ``per_class`` samples whose answer has the lowest mean
    probability. A patient is shown once. Ties are broken by sample id.
    """
    mean = answers(judges, classes)
    mean["place"] = mean["y_true"].map(classes.index)
    surest = mean.sort_values(["against", "sample_id"], ascending=[False, True])
    first = surest[wrong_by_all(judges)[surest.index]].drop_duplicates("patient_id")
    turn = first.groupby("y_true").cumcount()
    first = first.assign(turn=turn).sort_values(["turn", "place"], kind="stable").head(shared)
    parts = [first.sort_values("place", kind="stable").drop(columns="turn").assign(why=ALL_WRONG)]
    shown = set(first["patient_id"])
    least = mean.sort_values(["probability", "sample_id"])
    for name in classes:
        for why, rows in (
            (SUREST, surest[surest["called"] != surest["y_true"]]),
            (LEAST_SURE, least),
        ):
            rows = rows[(rows["y_true"] == name) & ~rows["patient_id"].isin(shown)]
            parts.append(rows.drop_duplicates("patient_id").head(per_class).assign(why=why))
            shown |= set(parts[-1]["patient_id"])
    return pd.concat(parts, ignore_index=True).drop(columns="place")
