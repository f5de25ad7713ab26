"""Tests on another data set in words, and as tables."""

from collections.abc import Iterator, Mapping

import pandas as pd

from medlib.show import names, tables
from medlib.show.answers import arm_name, arm_names
from medlib.stats import calibration

PRINTED = ("auroc", "balanced_accuracy", "brier", "log_loss")  # metrics of the table
DROP = ["drop", "drop_low", "drop_high"]
NO_FROZEN = "No frozen backbone was run: no embeddings can tell the data sets apart."
ABOUT = (
    "The 95 % intervals are about these trained models on other test patients, inside and outside. "
    "A drop above 0 means: worse outside."
)


def drop_words(row: Mapping) -> str:
    """How much worse an arm is outside: "+0.103 [+0.021, +0.190]"."""
    return tables.with_ends(pd.DataFrame([row]), "{:+.3f}", DROP)[0]


def table(compared: pd.DataFrame, task: str, titles: Mapping[str, str]) -> pd.DataFrame:
    """`external.compared` as printed: a row for each data set, arm and metric.

    ``compared`` may hold several data sets; ``task`` names the one on which models were trained.
    ``titles`` maps them to their titles. The arm with the highest AUROC inside comes first.
    """
    rows = compared[compared["metric"].isin(PRINTED)]
    rows = rows.assign(
        arm=arm_names(rows),
        value=tables.with_ends(rows, "{:.3f}"),
    )
    own, keys = rows["tested_on"] == task, ["arm", "metric"]
    inside, outside = rows[own].drop_duplicates(keys), rows[~own]
    first = inside[inside["metric"] == "auroc"].sort_values("rank")["arm"]
    both = outside.merge(inside, on=keys, suffixes=("", "_inside"))
    order = {"tested_on": outside["tested_on"].unique(), "arm": first, "metric": PRINTED}
    for column, values in order.items():
        both[column] = pd.Categorical(both[column], values)
    both = both.sort_values(list(order), ignore_index=True)
    return pd.DataFrame(
        {
            "tested on": both["tested_on"].astype(str).map(titles),
            "arm": both["arm"].astype(str),
            "metric": both["metric"].astype(str).map(names.METRICS),
            "inside": both["value_inside"],
            "outside": both["value"],
            "drop": [drop_words(row) for _, row in both.iterrows()],
            "rank inside → outside": [
                f"{a} → {b}" for a, b in zip(both["rank_inside"], both["rank"], strict=True)
            ],
        }
    )


def carried(points: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Operating points inside and outside as printed: a row for each data set, arm, class and rule.

    ``points``: rows of `operating.operating_points` with the columns of an arm, `tested_on` (a data
    set) and `place` (INSIDE or OUTSIDE, as seen from that data set).
    """
    rows = points.assign(
        arm=arm_names(points),
        tested_on=points["tested_on"].map(titles),
        cell=tables.with_ends(points, "{:.2f}"),
        column=points["metric"].replace({"ppv": "PPV", "npv": "NPV"}) + ", " + points["place"],
    )
    keys = ["tested_on", "arm", "class", "rule"]
    wide = rows.pivot(index=keys, columns="column", values="cell")
    order = pd.MultiIndex.from_frame(rows[keys].drop_duplicates())
    wide = wide.loc[order, list(dict.fromkeys(rows["column"]))]
    wide = wide.rename_axis(columns=None).reset_index()
    return wide.rename(columns={"tested_on": "tested on"})


def probabilities(table: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """`external.recalibrated` as printed: a row for each data set, arm and kind of probabilities.

    ``table`` also has the columns of an arm, and `tested_on`. An arm with too few external patients
    has a row that says so.
    """
    rows = table.assign(arm=arm_names(table))
    rows["tested_on"] = rows["tested_on"].map(titles)
    keys, lines = ["tested_on", "arm", "probabilities"], []
    for key, own in rows.groupby(keys, sort=False):
        line = dict(zip(["tested on", "arm", "probabilities"], key, strict=True))
        if own["why"].iloc[0]:
            lines.append(line | {"note": own["why"].iloc[0]})
            continue
        cells = tables.with_ends(own, "{:.3f}", ["value", "low", "high"])
        heads = own["metric"].map(
            names.METRICS | {name: f"calibration {name}" for name in calibration.COEFFICIENTS}
        )
        lines.append(line | dict(zip(heads, cells, strict=True)))
    return pd.DataFrame(lines).fillna("")


def choice_words(choice: pd.DataFrame, title: str) -> Iterator[str]:
    """Sentences that say whether the choice of an arm survives outside (`external.choice`)."""
    first = choice[choice["best"]].iloc[0]
    others = choice[~choice["best"]]
    controls = " (all arms are random controls)" * (first["pretraining"] == "random")
    yield f"Best inside: {arm_name(first)}{controls}."
    better = others[others["low"] > 0]
    for _, row in better.iterrows():
        ends = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        yield f"On {title}, {arm_name(row)} is shown to be better: {ends}."
    if others.empty:
        yield "There is no other arm to compare it with."
        return
    if better.empty:
        most = others.loc[others["high"].idxmax()]
        yield f"On {title}, no other arm is shown to be better."
        yield f"{arm_name(most)} may be better by up to {max(most['high'], 0):.3f}."
    yield f"It is the best in {first['share_best']:.0%} of draws of the external patients."


def shift_words(shift: pd.DataFrame) -> str:
    """How well the two data sets are told apart, in words (`external.shift`)."""
    cells = tables.with_ends(shift, "{:.3f}")
    named = [
        f"{names.spoken(label)} {cell}" for label, cell in zip(shift["label"], cells, strict=True)
    ]
    within = f" Within a class: {'; '.join(named[1:])}." if named[1:] else ""
    return f"A classifier tells the two apart with AUROC {cells[0]} (0.5: not at all).{within}"


def left_out_words(left_out: pd.DataFrame) -> str:
    """What was not judged: "12 samples were left out: 10 class tuberculosis, 2 …"; "" if none."""
    if left_out.empty:
        return ""
    counts = left_out["reason"].value_counts()
    reasons = "; ".join(f"{n} ({reason})" for reason, n in counts.items())
    return f"{len(left_out)} samples were left out: {reasons}."
