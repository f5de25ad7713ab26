"""Subgroups and sites in words, and as a table."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medlib.show import names, tables
from medlib.stats.subgroups import SITE, Subgroups

PRINTED = ("auroc", "balanced_accuracy", "brier")  # metrics of the table
NOTHING = "Nothing is known of these patients: no age, no sex, no site."
ABOUT = (
    "The 95 % intervals are about these trained models on other test patients. The interval of a "
    "largest gap holds for all pairs of groups of one attribute at once, but not for several "
    "attributes or backbones at once."
)


def attribute_name(attribute: str, of_class: str = "") -> str:
    """An attribute as it is printed: "body part, mel against the rest"."""
    against = f", {names.spoken(of_class)} against the rest" if of_class else ""
    return names.spoken(attribute) + against


def gap_words(row: Mapping) -> str:
    """The largest gap of a backbone: "B minus A +0.054 [+0.037, +0.071]", or why there is none."""
    if row["why"]:
        return row["why"]
    ends = f"[{row['gap_low']:+.3f}, {row['gap_high']:+.3f}]"
    return f"{row['higher']} minus {row['lower']} {row['gap']:+.3f} {ends}"


def site_words(row: Mapping) -> str:
    """How much sites differ: "I² 12 %, tau² 0.01, p = 0.36"."""
    return f"I² {row['i2']:.0%}, tau² {row['tau2']:.2g}, p = {row['p_value']:.2g}".replace(
        "%", " %"
    )


def left_out(found: Subgroups) -> str:
    """A sentence that names the sites that are not pooled; "" if all are."""
    several = found.sites["left_out"]
    names_of = "; ".join(dict.fromkeys(several[several != ""]))
    return f"Not pooled: {names_of}." if names_of else ""


def table(found: Subgroups, metrics: Sequence[str] = PRINTED) -> pd.DataFrame:
    """`subgroups.shown` as printed: a row for each attribute, group and backbone.

    After the groups of an attribute come the largest gaps of the backbones in the first metric. For
    sites, their pooled values and heterogeneity follow. A group of too few patients has one row
    that says so. Without any attribute the table is one sentence.
    """
    if found.table.empty:
        return pd.DataFrame({"attribute": [NOTHING]})
    rows = found.table[found.table["metric"].isin(metrics)]
    metrics = [name for name in metrics if (rows["metric"] == name).any()]
    lines = []
    for (attribute, of_class), part in rows.groupby(["attribute", "of_class"], sort=False):
        start = {"attribute": attribute_name(attribute, of_class)}
        for group, of_group in part.groupby("group", sort=False):
            lines += _group_lines(start | {"group": group}, of_group, metrics[0])
        first = (of[of["metric"] == metrics[0]] for of in (found.gaps, found.sites))
        gaps, sites = (of[of["attribute"] == attribute] for of in first)
        if (gaps["why"] != "").all():  # all backbones have the same patients: one sentence for all
            lines.append(start | {"group": "largest gap", metrics[0]: gaps["why"].iloc[0]})
        for name, of_one in names.by_backbone(gaps[gaps["why"] == ""]).items():
            words = gap_words(of_one.iloc[0])
            lines.append(start | {"group": "largest gap", "backbone": name, metrics[0]: words})
        for name, of_one in names.by_backbone(sites).items() if attribute == SITE else ():
            lines += _site_lines(start | {"backbone": name}, of_one.iloc[0], metrics[0])
    columns = ["attribute", "group", "patients", "by class", "backbone", *metrics]
    return pd.DataFrame(lines, columns=columns).fillna("")


def _group_lines(start: dict, rows: pd.DataFrame, first_metric: str) -> list[dict]:
    first = rows.iloc[0]
    start |= {"patients": f"{first['n_patients']:,}", "by class": first["by_class"]}
    if first["why"]:
        return [start | {first_metric: first["why"]}]
    lines = []
    for name, cells in names.by_backbone(rows).items():
        values = dict(zip(cells["metric"], tables.with_ends(cells, "{:.3f}"), strict=True))
        lines.append(start | {"backbone": name} | values)
    return lines


def _site_lines(start: dict, one: pd.Series, metric: str) -> list[dict]:
    if one["why"]:
        return []  # the largest gap says it
    pooled = f"{one['pooled']:.3f} [{one['pooled_low']:.3f}, {one['pooled_high']:.3f}]"
    lines = [start | {"group": "all sites pooled", metric: pooled}]
    if np.isfinite(one["new_site_low"]):
        ends = f"[{one['new_site_low']:.3f}, {one['new_site_high']:.3f}]"
        lines.append(start | {"group": "a new site", metric: ends})
    return [*lines, start | {"group": "heterogeneity", metric: site_words(one)}]
