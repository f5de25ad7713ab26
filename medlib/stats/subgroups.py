"""Metrics in groups of the test patients, for example by age, sex or site.

They are computed from existing predictions; no model is trained again. All intervals are about
these trained models on other test patients, and not about other training patients. In
cross-validation a metric is the mean over folds, as in :func:`prediction.evaluator`. A fold in
which a group lacks a class is left out of the metrics that need every class.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special, stats

from medlib.data.known import NOT_KNOWN
from medlib.errors import listed, unknown
from medlib.stats import bootstrap, differences, metrics, prediction, runs
from medlib.stats.bootstrap import Estimate
from medlib.stats.effects import Arm, of_patients

FEW = 20  # with fewer patients of a class, a group has no value
SITE = "site"  # the attribute whose groups are pooled
ONE_GROUP = "fewer than two groups have enough patients"
PLACE = [*runs.CELL, "attribute", "of_class", "metric"]
ROWS = [*PLACE, "group", "value", "ci_low", "ci_high", "n_patients", "n_images", "rarest"]
ROWS += ["by_class", "folds", "n_folds", "why"]
GAPS = [*PLACE, "higher", "lower", "gap", "gap_low", "gap_high", "n_groups", "why"]
POOLED = ["pooled", "pooled_low", "pooled_high", "new_site_low", "new_site_high"]
POOLED += ["tau2", "i2", "q", "p_value"]
COUNTS = ["n_patients", "n_images", "rarest", "folds", "n_folds", "n_groups", "n_sites"]
SITES = [*PLACE, *POOLED, "n_sites", "left_out", "why"]


class Subgroups(NamedTuple):
    """``table``: a row (ROWS) for each arm, attribute, class, metric and group.

    ``gaps``: the largest gap between two groups (GAPS). ``sites``: heterogeneity (SITES).
    """

    table: pd.DataFrame
    gaps: pd.DataFrame
    sites: pd.DataFrame


class Group(NamedTuple):
    """One group of one arm.

    ``row`` has the counts of the group, ``found`` its metrics by name. The i-th draw is of the same
    patients in all arms.
    """

    row: dict
    found: dict[str, Estimate]


def compare(
    arms: Sequence[Arm],
    groups: pd.DataFrame,
    few: int = FEW,
    resamples: int = 5000,
    ordered: bool = False,
) -> Subgroups:
    """Metrics in each group of the test patients, the largest gaps, and heterogeneity over sites.

    ``arms`` are of one task. Their own metric plays no part: all applicable metrics are computed.
    ``groups`` has a row for each sample id and a categorical column for each attribute
    (:func:`known.groups`). A sample counts in the group of its own value. A group with fewer than
    ``few`` patients of a class has no value, and ``why`` says so. With more than two classes, the
    AUROC of each class against the rest is computed as well (``of_class``); the rest then counts as
    one class. The other columns:

    - ``value``: the mean over seeds; ``ci_low`` and ``ci_high``: its 95 % interval
      (:func:`bootstrap.interval`);
    - ``rarest`` and ``by_class``: numbers of patients; ``folds``: how many of ``n_folds`` the value
      is a mean over;
    - ``gap``: the largest difference between two groups with a value, without NOT_KNOWN;
      ``gap_low`` and ``gap_high``: its interval, simultaneous over all pairs of groups of the
      attribute (:func:`differences.simultaneous_reach`);
    - ``pooled`` and the columns after it: :func:`heterogeneity` over sites, without NOT_KNOWN;
      ``left_out`` names the sites without a value, or with a value of exactly 0 or 1.

    Raises ValueError that lists the samples that ``groups`` lacks.
    """
    tables: dict[str, list] = {"table": [], "gaps": [], "sites": []}
    for arm in arms:
        ids = arm.frames[0]["sample_id"]
        if missing := sorted(set(ids) - set(groups.index)):
            raise ValueError(
                f"{len(missing)} predicted samples are not in the manifest. Run notebook "
                f"01_prepare_data and the notebooks after it again:\n{listed(missing)}"
            )
        of_arm = groups.loc[ids]
        for of_class, frames, classes, names in _questions(arm, ordered):
            for attribute in groups:
                place = arm.cell | {"attribute": attribute, "of_class": of_class}
                found = {
                    name: _group(frames, classes, names, mask, few, resamples)
                    for name, mask in _masks(of_arm[attribute])
                }
                tables["table"] += _rows(place, found, names)
                named = {name: one for name, one in found.items() if name != NOT_KNOWN}
                tables["gaps"] += [place | _gap(named, name) for name in names if name != "ece"]
                if attribute == SITE:
                    shares = [n for n in names if not bootstrap.takes_bca(n)]
                    tables["sites"] += [place | _pooled(named, name) for name in shares]
    columns = zip(tables.items(), (ROWS, GAPS, SITES), strict=True)
    return Subgroups(*(pd.DataFrame(rows, columns=names) for (_, rows), names in columns))


def shown(found: Subgroups, one_class: str = "") -> Subgroups:
    """For each attribute, the rows of all classes together or of one class against the rest.

    ``one_class`` chooses the class. Without it, the rows of all classes together are taken if at
    least two groups have enough patients of every class. Otherwise the class is taken for which the
    most groups have enough patients (the first such class). Results play no part in this choice.
    Raises ValueError for a class that was not judged against the rest.
    """
    judged = [name for name in dict.fromkeys(found.table["of_class"]) if name]
    if one_class and one_class not in judged:
        raise ValueError(unknown("class", one_class, judged or ["(two classes: leave it out)"]))
    chosen = {}
    for attribute, rows in found.table.groupby("attribute", sort=False):
        enough = rows[rows["why"] == ""].drop_duplicates(["of_class", "group"])
        counts = enough["of_class"].value_counts().reindex(["", *judged], fill_value=0)
        chosen[attribute] = one_class or ("" if counts[""] > 1 else counts.idxmax())
    kept = (part[part["of_class"] == part["attribute"].map(chosen)] for part in found)
    order = {attribute: at for at, attribute in enumerate(chosen)}
    by = {"key": lambda names: names.map(order), "kind": "stable", "ignore_index": True}
    return Subgroups(*(part.sort_values("attribute", **by) for part in kept))


def joined(found: Subgroups) -> pd.DataFrame:
    """The three tables as one, with a column ``part``: "group", "gap" or "sites"."""
    parts = zip(("group", "gap", "sites"), found, strict=True)
    table = pd.concat([table.assign(part=name) for name, table in parts], ignore_index=True)
    return table.astype(dict.fromkeys(COUNTS, "Int64"))  # integers, also beside empty cells


def _questions(arm: Arm, ordered: bool) -> Iterator[tuple[str, list, list[str], Sequence[str]]]:
    """What is judged: all classes together and, with more than two, each against the rest.

    Yields the class ("" for all), the predictions of each seed, their classes and the metrics.
    """
    yield "", arm.frames, arm.classes, metrics.applicable(len(arm.classes), ordered)
    for name in arm.classes if len(arm.classes) > 2 else ():
        frames = [prediction.against_rest(frame, name) for frame in arm.frames]
        yield name, frames, [f"not {name}", name], ["auroc"]


def _masks(named: pd.Series) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each group that has rows here, in order, with the mask of its rows."""
    for name in named.cat.categories:
        mask = (named == name).to_numpy()
        if mask.any():
            yield name, mask


def _group(
    frames: list[pd.DataFrame],
    classes: list[str],
    names: Sequence[str],
    mask: np.ndarray,
    few: int,
    resamples: int,
) -> Group:
    own = [frame[mask] for frame in frames]
    patients = own[0].groupby("y_true")["patient_id"].nunique().reindex(classes, fill_value=0)
    row = {"n_patients": own[0]["patient_id"].nunique(), "n_images": len(own[0])}
    row |= {"rarest": int(patients.min()), "why": ""}
    row["by_class"] = ", ".join(f"{name} {n}" for name, n in patients.items())
    parts = [own[0][rows] for rows, _ in prediction.folds(own[0])]
    row["n_folds"] = sum(1 for _ in prediction.folds(frames[0]))
    row["whole"] = sum(part["y_true"].nunique() == len(classes) for part in parts)
    row["filled"] = len(parts)
    if lacking := [f"{name} {n}" for name, n in patients.items() if n < few]:
        return Group(row | {"why": f"too few: {', '.join(lacking)}"}, {})
    return Group(row, bootstrap.estimates(own, classes, names, resamples))


def _rows(place: dict, found: dict[str, Group], names: Sequence[str]) -> Iterator[dict]:
    for name in names:
        for group, one in found.items():
            row = place | {"metric": name, "group": group} | one.row
            row["folds"] = row["whole" if name in metrics.RANKS else "filled"]
            if known := one.found.get(name):
                row |= {"value": known.value} | bootstrap.ends("ci", (known.low, known.high))
            yield row


def _gap(found: dict[str, Group], name: str) -> dict:
    """The largest gap between two groups in one metric: the columns GAPS after PLACE."""
    known = {group: one.found[name] for group, one in found.items() if name in one.found}
    known = {group: one for group, one in known.items() if np.isfinite(one.value)}
    row = {"metric": name, "n_groups": len(known), "why": "" if len(known) > 1 else ONE_GROUP}
    if len(known) < 2:
        return row
    draws = {group: one.draws for group, one in known.items()}
    rarest = {group: found[group].row["rarest"] for group in known}
    if bootstrap.takes_bca(name):
        rarest = None
    pairs = pairwise({group: one.value for group, one in known.items()}, draws, rarest)
    return row | pairs.loc[pairs["gap"].idxmax()].to_dict()


def pairwise(
    values: Mapping[str, float],
    draws: Mapping[str, np.ndarray],
    rarest: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """The gaps between all pairs of groups, with simultaneous 95 % intervals.

    ``values`` has the metric of each group, ``draws`` its values (resamples,) on draws of patients;
    the i-th draw is the same for all groups. Columns: higher and lower (groups), gap (0 or more),
    gap_low and gap_high. All intervals reach the same number of standard errors to each side
    (:func:`differences.simultaneous_reach`).

    Metrics that are proportions have a skewed distribution near 1. For them ``rarest`` is the
    number of patients of the rarest class in each group. Each group then gets an interval on the
    logit scale with the same reach, and the intervals of a pair are combined with their correlation
    (:func:`bootstrap.difference`). If ``rarest`` is None, the interval of a gap is
    symmetric.
    """
    order = sorted(values, key=values.get)
    pairs = [(higher, lower) for at, higher in enumerate(order) for lower in order[:at]]
    found = []
    for higher, lower in pairs:
        gap, apart = values[higher] - values[lower], draws[higher] - draws[lower]
        found.append(of_patients(gap, apart))
    reach = differences.simultaneous_reach(found)
    table = pd.DataFrame(pairs, columns=["higher", "lower"])
    table["gap"] = [one.value for one in found]
    if rarest is None:
        half = reach * np.array([one.error for one in found])
        return table.assign(gap_low=table["gap"] - half, gap_high=table["gap"] + half)
    found = {}
    for group, value in values.items():
        error = bootstrap.error(draws[group])
        ends = bootstrap.logit_interval(value, error, rarest[group], reach)
        found[group] = Estimate(value, *ends, draws[group])
    ends = [_apart(found[one], found[other]) for one, other in pairs]
    table[["gap_low", "gap_high"]] = np.reshape(ends, (-1, 2))
    return table


def _apart(one: Estimate, other: Estimate) -> tuple[float, float]:
    """The interval of one group minus another, with the correlation of their draws."""
    both = np.isfinite(one.draws) & np.isfinite(other.draws)
    drawn = np.stack([one.draws[both], other.draws[both]])
    varying = (drawn.std(axis=1) > 0).all()
    r = np.corrcoef(drawn)[0, 1] if varying else 0.0  # about 0 if no patient is in both
    return bootstrap.difference(one, other, r)


def _pooled(found: dict[str, Group], name: str) -> dict:
    """Heterogeneity over sites in one metric: the columns SITES after PLACE."""
    values = {site: one.found[name].value if one.found else np.nan for site, one in found.items()}
    inner = {site: value for site, value in values.items() if 1e-9 < value < 1 - 1e-9}
    row = {"metric": name, "n_sites": len(inner), "why": "" if len(inner) > 1 else ONE_GROUP}
    row["left_out"] = ", ".join(site for site in values if site not in inner)
    if len(inner) < 2:
        return row
    errors = [bootstrap.error(found[site].found[name].draws) for site in inner]
    return row | heterogeneity(list(inner.values()), errors)


def heterogeneity(values: Sequence[float], errors: Sequence[float]) -> dict[str, float]:
    """Random-effects meta-analysis of the proportions (0 to 1) of several sites.

    ``errors`` are the standard errors of ``values``. The model is that of DerSimonian and Laird
    (Control. Clin. Trials 7, 1986) on the logit scale, as statsmodels computes it. ``pooled`` is
    the mean over sites. Its 95 % interval has the correction of Hartung, Knapp, Sidik and Jonkman,
    and is never narrower than without it. ``new_site`` is the 95 % prediction interval for one more
    site (Higgins et al., J. R. Stat. Soc. A 172, 2009); it is NaN for fewer than three sites.
    ``tau2`` is the variance between sites (logit scale), ``i2`` its share of the total variance (0
    to 1), ``q`` Cochran's Q with its ``p_value``.
    """
    # Imported here: it takes a second or more.
    from statsmodels.stats.meta_analysis import combine_effects

    values, errors = np.asarray(values, float), np.asarray(errors, float)
    effects, variances = special.logit(values), (errors / (values * (1 - values))) ** 2
    with np.errstate(invalid="ignore"):  # roots of a negative tau², which are not used
        found = combine_effects(effects, variances, method_re="dl")
    # A negative estimate of tau² is set to 0: this is the model with one common effect.
    between, kind = max(found.tau2, 0.0), "re" if found.tau2 > 0 else "fe"
    mean, k = getattr(found, f"mean_effect_{kind}"), len(values)
    plain = float(getattr(found, f"sd_eff_w_{kind}"))
    error = max(plain, float(getattr(found, f"sd_eff_w_{kind}_hksj")))
    half = stats.t.ppf(bootstrap.TAILS[1], k - 1) * error
    ends = special.expit(mean + np.array([-half, half]))
    row = {"pooled": float(special.expit(mean))} | bootstrap.ends("pooled", ends)
    new = (np.nan, np.nan)
    if k > 2:
        half = stats.t.ppf(bootstrap.TAILS[1], k - 2) * np.sqrt(between + plain**2)
        new = special.expit(mean + np.array([-half, half]))
    row |= bootstrap.ends("new_site", new)
    q = found.test_homogeneity()
    row |= {"tau2": float(between), "i2": float(max(found.i2, 0.0))}
    return row | {"q": float(q.statistic), "p_value": float(q.pvalue)}
