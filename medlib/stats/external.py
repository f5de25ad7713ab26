"""Do a task's models hold on the patients of another data set, on which none was trained?

The trained models of each arm predict the external samples unchanged: one for each seed and
rotation. A metric outside is the mean over these models, as inside it is the mean over seeds and
folds. All intervals are about other test patients, inside or outside. The models are as they are.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib.core.metrics import codes
from medlib.errors import ManifestError
from medlib.stats import bootstrap, calibration, differences, metrics, prediction, runs
from medlib.stats.bootstrap import Estimate
from medlib.stats.effects import Arm, of_patients

INSIDE, OUTSIDE = "inside", "outside"
COLUMNS = [*runs.CELL, "tested_on", "metric", "value", "ci_low", "ci_high"]
COLUMNS += ["n_patients", "n_images", "rank", "drop", "drop_low", "drop_high"]
RECALIBRATED = "recalibrated"
REPEATS = 50  # draws of the patients that recalibrate
MOST = 2000  # samples of each data set that are told apart
FOLDS = 5  # of the classifier that tells them apart


def outside(
    arm: Arm, predicted: Mapping[int, Mapping[int, pd.DataFrame]], present: Sequence[str]
) -> tuple[Arm, Arm]:
    """An arm inside and outside, on the classes that both have.

    ``predicted`` maps each seed, and then the fold on which a model was tested, to predictions of
    the external samples; ``present`` are the classes of these. The first arm is the given one, the
    second has the external predictions as ``frames``, one for each model, and the validation
    predictions of the same model as ``validated``. Neither has draws. If the external samples lack
    a class, both are judged on the others: samples of that class are left out, and probabilities
    are those given one of the others.
    """
    classes = [name for name in arm.classes if name in present]
    frames, validated = [], []
    for seed, table in zip(arm.values, arm.validated, strict=True):
        for fold, frame in predicted[seed].items():
            own = table[table["rotation"].astype(str) == str(fold)]
            frames.append(_among(frame, arm.classes, classes))
            validated.append(_among(own, arm.classes, classes))
    own = [_among(frame, arm.classes, classes) for frame in arm.frames]
    tables = [_among(table, arm.classes, classes) for table in arm.validated]
    inside = arm._replace(frames=own, validated=tables, classes=classes)
    return inside, inside._replace(frames=frames, validated=validated)


def _among(frame: pd.DataFrame, classes: list[str], kept: list[str]) -> pd.DataFrame:
    """Predictions of the samples of some classes, given that it is one of them."""
    if kept == classes:
        return frame
    rows = frame[frame["y_true"].isin(kept)].reset_index(drop=True)
    gone = prediction.probability_columns([name for name in classes if name not in kept])
    columns = prediction.probability_columns(kept)
    share = np.maximum(rows[columns].to_numpy(), 1e-12)
    return rows.drop(columns=gone).assign(
        **dict(zip(columns, (share / share.sum(1, keepdims=True)).T, strict=True))
    )


def estimates(
    arms: Sequence[Arm], names: Sequence[str], resamples: int = 5000
) -> list[dict[str, Estimate]]:
    """The metrics of each arm by name, over its patients: :func:`bootstrap.estimates`."""
    return [bootstrap.estimates(arm.frames, arm.classes, names, resamples) for arm in arms]


def compared(
    both: Sequence[tuple[Arm, Arm]],
    inside: Sequence[dict[str, Estimate]],
    outside: Sequence[dict[str, Estimate]],
    tested_on: tuple[str, str],
) -> pd.DataFrame:
    """A row for each arm, metric and place: the columns COLUMNS.

    ``both`` are arms of one task, inside and outside; ``inside`` and ``outside`` are their
    :func:`estimates`; ``tested_on`` names the two data sets. ``rank`` is that among the arms at the
    place, 1 for the best. ``drop`` says how much worse the arm is outside than inside. Its 95 %
    interval is that of a difference between independent samples (:func:`bootstrap.difference`). It
    stands in the row of the external data set.
    """
    rows = []
    for arms, here, there in zip(both, inside, outside, strict=True):
        for name in here:
            worse = -1 if name in metrics.LOSSES else 1
            low, high = sorted(worse * end for end in bootstrap.difference(here[name], there[name]))
            drop = {"drop": worse * (here[name].value - there[name].value)}
            drop |= {"drop_low": low, "drop_high": high}
            for place, arm, one in zip(tested_on, arms, (here[name], there[name]), strict=True):
                row = arm.cell | {"tested_on": place, "metric": name, "value": one.value}
                row |= bootstrap.ends("ci", (one.low, one.high))
                row["n_patients"] = arm.frames[0]["patient_id"].nunique()
                row["n_images"] = len(arm.frames[0])
                rows.append(row | (drop if place == tested_on[1] else {}))
    table = pd.DataFrame(rows, columns=COLUMNS)
    lower_is_better = table["metric"].isin(metrics.LOSSES)
    signed = table["value"].where(lower_is_better, -table["value"])
    table["rank"] = signed.groupby([table["tested_on"], table["metric"]]).rank(method="min")
    return table.astype({"rank": "Int64"})


def choice(
    both: Sequence[tuple[Arm, Arm]],
    inside: Sequence[dict[str, Estimate]],
    outside: Sequence[dict[str, Estimate]],
    name: str = "auroc",
) -> pd.DataFrame:
    """Does the choice survive? Every other arm minus the arm that is best inside, outside.

    Random controls are left out, unless all arms are. Columns: runs.CELL, best (the arm that is
    best inside; its difference is 0), difference (above 0: the other arm is better outside), low,
    high (95 % intervals that hold for all of them at once: :func:`differences.simultaneous_reach`)
    and share_best (the share of draws of external patients in which the arm is the best). The
    interval does not say that the best arm inside was chosen by its test result.
    """
    sign = -1 if name in metrics.LOSSES else 1
    judged = [
        (arms[0].cell, sign * here[name].value, there[name])
        for arms, here, there in zip(both, inside, outside, strict=True)
    ]
    pretrained = [one for one in judged if one[0]["pretraining"] != "random"]
    judged = pretrained or judged
    first = int(np.argmax([value for _, value, _ in judged]))
    drawn = sign * np.stack([one.draws for *_, one in judged])
    values = sign * np.array([one.value for *_, one in judged])
    whole = np.isfinite(drawn).all(0)
    apart = drawn - drawn[first]
    errors = np.array([bootstrap.error(values) for values in apart])
    others = [i for i in range(len(judged)) if errors[i] > 0]
    found = [of_patients(values[i] - values[first], apart[i]) for i in others]
    reach = differences.simultaneous_reach(found) if found else np.nan
    table = pd.DataFrame([cell for cell, *_ in judged])
    table["best"] = np.arange(len(judged)) == first
    table["difference"] = values - values[first]
    table["low"], table["high"] = table["difference"], table["difference"]
    table.loc[others, "low"] -= reach * errors[others]
    table.loc[others, "high"] += reach * errors[others]
    best = np.bincount(drawn[:, whole].argmax(0), minlength=len(judged))
    return table.assign(share_best=best / max(whole.sum(), 1))


def recalibrated(arm: Arm, patients: int, seed: int = 0) -> pd.DataFrame:
    """The quality of an external arm's probabilities, before and after recalibration.

    In each of REPEATS draws, ``patients`` external patients (of each class its share, at least one)
    fit a temperature and offsets (:data:`calibration.OFFSETS`), and the other patients are judged:
    with raw probabilities, with the temperature that validation patients inside chose, and with
    these. Columns: probabilities (RAW, TEMPERATURE, RECALIBRATED), metric
    (:data:`calibration.METRICS` and COEFFICIENTS), value (the median of the draws), low, high (the
    range of 95 % of the draws: how much depends on who is drawn) and why ("", or why there is no
    value).
    """
    tables, frame = [], arm.frames[0]
    label_of = frame.drop_duplicates("patient_id").set_index("patient_id")["y_true"]
    counts = label_of.value_counts()
    if len(label_of) < 2 * patients or counts.min() < 2:
        why = f"{len(label_of)} external patients ({counts.min()} of the rarest class) are too few"
        return pd.DataFrame({"probabilities": [RECALIBRATED], "why": f"{why} to take {patients}."})
    carried = calibration.of_arm(arm)
    rng = np.random.default_rng(seed)
    for _ in range(REPEATS):
        drawn = _drawn(rng, label_of, patients)
        kinds = {calibration.RAW: [], calibration.TEMPERATURE: [], RECALIBRATED: []}
        for raw, scaled in zip(arm.frames, carried, strict=True):
            few = raw["patient_id"].isin(drawn)
            own = prediction.arrays(raw[few], arm.classes)
            scaling = calibration.fitted(*own, calibration.OFFSETS)
            rest, columns = raw[~few].copy(), prediction.probability_columns(arm.classes)
            kinds[calibration.RAW].append(rest)
            kinds[calibration.TEMPERATURE].append(scaled[~few])
            new = rest.copy()
            new[columns] = scaling(rest[columns].to_numpy())
            kinds[RECALIBRATED].append(new)
        for kind, frames in kinds.items():
            points = [prediction.point(f, arm.classes, calibration.METRICS) for f in frames]
            values = pd.DataFrame(points).mean()
            lines = calibration.coefficients(frames, arm.classes)
            # Of more than two classes the mean over them, which stands last.
            lines = lines.drop_duplicates("metric", keep="last").set_index("metric")["value"]
            tables.append(pd.concat([values, lines]).rename(kind))
    drawn = pd.concat(tables, axis=1).T
    rows = drawn.rename_axis("probabilities").reset_index()
    rows = rows.melt("probabilities", var_name="metric").groupby(
        ["probabilities", "metric"], sort=False
    )
    low, high = (rows["value"].quantile(tail) for tail in bootstrap.TAILS)
    table = pd.DataFrame({"value": rows["value"].median(), "low": low, "high": high})
    return table.reset_index().assign(why="")


def _drawn(rng: np.random.Generator, label_of: pd.Series, patients: int) -> list:
    """Patients at random, of each class about its share and at least one."""
    drawn, share = [], patients / len(label_of)
    for _, own in label_of.groupby(label_of):
        n = min(max(1, round(share * len(own))), len(own) - 1)
        drawn += rng.choice(own.index.to_numpy(), n, replace=False).tolist()
    return drawn


class Embedded(NamedTuple):
    """Embeddings (n, d) of a data set, and a row for each: sample_id, patient_id, label."""

    x: np.ndarray
    index: pd.DataFrame


def told_apart(inside: Embedded, outside: Embedded, seed: int = 0) -> pd.DataFrame:
    """Predictions of a classifier that tells two data sets apart by their embeddings.

    A logistic regression on standardised embeddings, cross-validated by patient in FOLDS folds.
    From each data set at most MOST samples are taken, at random. Returns a row for each sample:
    sample_id, patient_id, label, fold, y_true (INSIDE, OUTSIDE), prob_inside, prob_outside. Raises
    ManifestError for fewer patients in a data set than folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng, rows, x = np.random.default_rng(seed), [], []
    for place, (values, index) in ((INSIDE, inside), (OUTSIDE, outside)):
        if (n := index["patient_id"].nunique()) < FOLDS:
            raise ManifestError(f"{n} patients {place} are too few: {FOLDS} or more are needed.")
        samples = index["sample_id"].unique()
        kept = rng.choice(samples, min(MOST, len(samples)), replace=False)
        mask = index["sample_id"].isin(kept).to_numpy()
        own = index.loc[mask, ["sample_id", "patient_id", "label"]]
        rows.append(
            own.assign(y_true=place, patient_id=f"{place} " + own["patient_id"].astype(str))
        )
        x.append(np.asarray(values[mask], np.float32))
    index, x = pd.concat(rows, ignore_index=True), np.concatenate(x)
    y = codes(index["y_true"], [INSIDE, OUTSIDE])
    fold, proba = np.zeros(len(y), int), np.zeros(len(y))
    parts = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (train, test) in enumerate(parts.split(x, y, index["patient_id"])):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        proba[test] = model.fit(x[train], y[train]).predict_proba(x[test])[:, 1]
        fold[test] = number
    index = index.assign(fold=fold, prob_inside=1 - proba, prob_outside=proba)
    keys = ["sample_id", "patient_id", "label", "fold", "y_true"]
    return index.groupby(keys, sort=False, as_index=False)[["prob_inside", "prob_outside"]].mean()


def shift(apart: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """How well two data sets are told apart: AUROC with its 95 % interval over their patients.

    ``apart`` is :func:`told_apart`. A row for all samples (label ""), and one for each class that
    both have: the two may differ in how common a class is, and this is no difference between
    images of one class. Columns: label, value, ci_low, ci_high, n_inside and n_outside (patients).
    0.5: they cannot be told apart. 1: always.
    """
    rows, order = [], [INSIDE, OUTSIDE]
    shared = [name for name, own in apart.groupby("label") if own["y_true"].nunique() == 2]
    for label in ["", *shared]:
        own = apart if not label else apart[apart["label"] == label].reset_index(drop=True)
        one = bootstrap.estimates([own], order, ["auroc"], resamples)["auroc"]
        row = {"label": label, "value": one.value} | bootstrap.ends("ci", (one.low, one.high))
        patients = own.groupby("y_true")["patient_id"].nunique()
        rows.append(row | {f"n_{place}": int(patients[place]) for place in order})
    return pd.DataFrame(rows)
