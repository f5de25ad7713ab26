"""Are the tests right? Simulations whose truth is known.

Feature extractors with exactly equal performance (or a known difference) get new training and test
patients in every trial. The study's own code then fits the linear head, trains it again after
redraws of the training patients, and tests the difference. Five questions:

- how often two equal extractors are called different, and how often at least one pair of a family;
- how often the interval of the procedure contains the expected AUROC of a training of this size;
- how often arms that differ by the margin are called equivalent;
- how often a claim that is true is contradicted;
- how often the intervals of all gaps between subgroups contain the true gaps at once.

The old tests, whose error was over test patients alone, are reported as well.

    python benchmarks/simulations.py [--quick] [--trials 400] [--only pair family …]
"""

import argparse
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from scipy import special
from scipy.stats import binomtest, norm

from medlib import files
from medlib.core import heads, metrics, splits
from medlib.stats import bootstrap, claims, differences, effects, prediction, subgroups
from medlib.stats.redraws import redrawn_metrics

CLASSES, D, SHARED = ["no", "yes"], 30, 10  # features of an extractor; how many all share
REDRAWS, RESAMPLES = 100, 1000
OUT = Path("figures/bench/simulations.csv")


def patients(n: int, signals: list[float], rng: np.random.Generator) -> tuple:
    """Labels (n,) and the features (n, D) of each extractor.

    ``signals``: for each extractor, how far apart the means of its two classes are. All extractors
    share a third of the features, so their errors are correlated.
    """
    y = rng.permutation(np.arange(n) % 2)
    shared = rng.normal(size=(n, SHARED))
    shared[:, 0] += 0.6 * (y - 0.5)
    extracted = []
    for signal in signals:
        own = rng.normal(size=(n, D - SHARED))
        own[:, :4] += signal / 2 * (y - 0.5)[:, None]
        extracted.append(np.hstack([shared, own]).astype(np.float32))
    return y, extracted


def index_of(y: np.ndarray, side: np.ndarray, trial: int) -> pd.DataFrame:
    ids = [f"{trial}-{number}" for number in range(len(y))]
    labels = {"sample_id": ids, "patient_id": ids, "label": np.array(CLASSES)[y]}
    return pd.DataFrame(labels | {"fold" if side.dtype.kind == "i" else "split": side})


def trial(number: int, design: dict) -> tuple[list[effects.Arm], list[float]]:
    """The arms of one trial, and the true AUROC of each arm's trained models."""
    torch.set_num_threads(1)
    rng, signals = np.random.default_rng([design["seed"], number]), design["signals"]
    if "folds" in design:
        y, extracted = patients(design["n"], signals, rng)
        side = np.arange(len(y)) // 2 % design["folds"]
    else:
        sizes = [design["train"], design["train"] // 2, design["test"]]
        y, extracted = patients(sum(sizes), signals, rng)
        side = np.repeat(splits.SPLITS, sizes)
    index, arms, truths = index_of(y, side, number), [], []
    rotations = splits.rotations(side, index["patient_id"], index["label"])
    fresh_y, fresh = patients(design.get("fresh", 2), signals, rng)
    for name, x in enumerate(extracted):
        samples = index["sample_id"].to_numpy()
        swept = heads.sweep(x, y, samples, [("linear", 0, rotations)], n_classes=2, device="cpu")
        _, predicted, _, _ = next(swept)
        frame = prediction.tables(index, rotations, predicted, CLASSES)["predictions.csv"]
        asked = x, index, rotations, CLASSES, design["redraws"]
        again = redrawn_metrics(*asked, device="cpu")
        drawn = bootstrap.bootstrap(frame, CLASSES, design["resamples"], names=["auroc"], threads=1)
        cell = {"task": "t", "backbone": f"extractor{name:02d}", "pretraining": "imagenet"}
        cell |= {"regime": "frozen", "head": "linear", "label_fraction": 1.0}
        value = prediction.point(frame, CLASSES, ["auroc"])["auroc"]
        redraws = {0: again["auroc"].to_numpy()}
        arms.append(
            effects.Arm(cell, "auroc", {0: value}, {0: drawn["auroc"]}, redraws, [frame], CLASSES)
        )
        truths.append(_truth(x, y, index, rotations, fresh[name], fresh_y))
    return arms, truths


def _truth(x, y, index, rotations, fresh: np.ndarray, fresh_y: np.ndarray) -> float:
    """The AUROC of the trained models on many fresh patients: the mean over rotations."""
    if len(fresh) < 100:
        return float("nan")
    both = np.concatenate([x, fresh])
    labels = np.concatenate([y, fresh_y])
    values, empty = [], np.zeros(len(fresh), bool)
    for part in rotations:
        sides = (part.train, part.val, np.zeros_like(part.test))
        train, val, test = (np.concatenate([side, empty]) for side in sides)
        test[len(x) :] = True
        asked = [("linear", 0, [splits.Rotation(0, train, val, test)])]
        run = heads.sweep(both, labels, np.arange(len(both)), asked, n_classes=2, device="cpu")
        _, [predicted], _, _ = next(run)
        values.append(float(metrics.auroc(fresh_y, predicted.test)))
    return float(np.mean(values))


def judged(number: int, design: dict) -> dict:
    """What is counted in one trial, two intervals of the first arm, and the true AUROCs."""
    arms, truths = trial(number, design)
    table = differences.differences(arms)
    # The old test: the models as they are, on other test patients.
    patients_error = (table["ci_high"] - table["ci_low"]) / (2 * bootstrap.Z)
    old = 2 * norm.sf(table["difference"].abs() / patients_error)
    row = {
        "different, of pairs": (table["p_value"] < 0.05).mean(),
        "different, any after Holm": table["different"].any(),
        "different, of pairs (patients alone)": (old < 0.05).mean(),
        "different, any after Holm (patients alone)": (differences.holm(old) < 0.05).any(),
        "equivalent, of pairs": (table["p_equivalence"] < 0.05).mean(),
    }
    found = effects.effect([(1, arms[0])])
    rarest = prediction.rarest(arms[0].frames[0])
    reach = found.reach()
    row["ends"] = bootstrap.logit_interval(found.value, found.error, rarest, reach)
    row["patients"] = bootstrap.logit_interval(found.value, found.patients, rarest)
    return row | {"truths": truths}


def of_claims(number: int, truth: str) -> dict[str, float]:
    """Whether each claim is contradicted in one trial of arms in which all claims are true.

    With ``truth`` "plain", DINOv2 is 0.03 lower on MRI and 0.03 higher elsewhere (more if frozen,
    less if fine-tuned). With "small", it is 0.005 instead of 0.03. DINOv2's sizes are exactly
    equal. The errors on MRI are those of about 100 patients, the same for all modalities.
    """
    rng = np.random.default_rng([7, number])
    gap = {"plain": 0.03, "small": 0.005}[truth]
    arms, of_people = [], {}
    for task in claims.MRI + claims.PUBLIC:
        people = "mri" if task in claims.MRI else task
        size = 0.02 if people == "mri" else 0.006
        if people not in of_people:
            of_people[people] = rng.normal(size=RESAMPLES), rng.normal()
        common, shift = of_people[people]
        for backbone in (*claims.DINOV2.values(), *claims.CNNS):
            for regime, seeds in (("frozen", [0]), ("finetuned", [0, 1, 2])):
                value = 0.85
                if backbone in claims.DINOV2.values():
                    more = 1.5 if regime == "frozen" else 0.5
                    value += -gap if people == "mri" else gap * more
                own = 0.7 * size * rng.normal(size=RESAMPLES) + 0.7 * size * common
                error = 0.7 * size * rng.normal() + 0.7 * size * shift
                values = {s: value + error + size * rng.normal() for s in seeds}
                cell = {"task": task, "backbone": backbone, "regime": regime, "head": "linear"}
                cell |= {"label_fraction": 1.0, "pretraining": "imagenet"}
                drawn = {s: values[s] + own for s in seeds}
                again = (
                    {0: values[0] + size * rng.normal(size=REDRAWS)} if regime == "frozen" else {}
                )
                arms.append(effects.Arm(cell, "auroc", values, drawn, again, [], CLASSES))
    verdicts = claims.verdicts(arms).groupby("claim")["verdict"].first()
    return {f"{claim} contradicted": verdicts[claim] == "contradicted" for claim in verdicts.index}


# Patients of each group; true AUROCs; folds, or none.
GROUPS = {
    "4 groups of 60 to 160": ((60, 160, 80, 100), (0.8, 0.8, 0.8, 0.8), 0),
    "4 unequal groups of 60 to 160": ((60, 160, 80, 100), (0.65, 0.75, 0.85, 0.8), 0),
    "10 groups of 50 to 400": ((50, 50, 60, 80, 100, 120, 150, 200, 300, 400), (0.85,) * 10, 0),
    "3 groups of 40, the fewest": ((40, 40, 40), (0.75, 0.8, 0.85), 0),
    "3 groups of 40, close to 1": ((40, 40, 40), (0.95, 0.96, 0.97), 0),
    "4 groups of 60 to 160, 5 folds": ((60, 160, 80, 100), (0.8, 0.8, 0.8, 0.8), 5),
}


def of_groups(number: int, sizes: tuple, truths: tuple, folds: int) -> dict[str, bool]:
    """Whether all gaps, and the largest one, lie in their intervals in one study.

    Half of the patients are of each class. The scores are normal, so that the AUROCs are known.
    """
    rng, frames = np.random.default_rng([8, number]), []
    for group, (n, area) in enumerate(zip(sizes, truths, strict=True)):
        y = np.arange(n) % 2
        score = special.expit(rng.normal(size=n) + y * np.sqrt(2) * norm.ppf(area))
        ids = [f"{number}-{group}-{k}" for k in range(n)]
        part = {"sample_id": ids, "patient_id": ids, "y_true": np.array(CLASSES)[y]}
        part |= {"prob_no": 1 - score, "prob_yes": score}
        part |= {"fold": np.arange(n) // 2 % folds} if folds else {"split": "test"}
        frames.append(pd.DataFrame(part))
    values, drawn = {}, {}
    for group, frame in enumerate(frames):
        values[group] = prediction.point(frame, CLASSES, ["auroc"])["auroc"]
        drawn[group] = bootstrap.bootstrap(frame, CLASSES, RESAMPLES, names=["auroc"], threads=1)
        drawn[group] = drawn[group]["auroc"]
    pairs = subgroups.pairwise(values, drawn, {group: n // 2 for group, n in enumerate(sizes)})
    apart = [truths[a] - truths[b] for a, b in zip(pairs["higher"], pairs["lower"], strict=True)]
    inside = (pairs["gap_low"] <= apart) & (apart <= pairs["gap_high"])
    return {"all gaps held": inside.all(), "largest gap held": inside[pairs["gap"].idxmax()]}


def of_sites(number: int, k: int, tau: float) -> dict[str, bool]:
    """Whether the mean over k sites, and one more site, lie in their intervals in one study."""
    rng = np.random.default_rng([9, number])
    true = special.logit(0.8) + tau * rng.normal(size=k + 1)
    error = rng.uniform(0.15, 0.5, size=k)
    seen = special.expit(true[:k] + error * rng.normal(size=k))
    found = subgroups.heterogeneity(seen, error * seen * (1 - seen))
    return {
        "mean over sites held": found["pooled_low"] <= 0.8 <= found["pooled_high"],
        "new site held": found["new_site_low"] <= special.expit(true[k]) <= found["new_site_high"],
    }


EQUAL = 1.0  # the signal of extractors with equal performance
QUESTIONS = ["pair", "family", "margin", "claims", "gaps"]
DESIGNS = {
    "80 training, 400 test": {"train": 80, "test": 400},
    "80 training, 2,000 test": {"train": 80, "test": 2000},
    "100 patients, 5 folds": {"n": 100, "folds": 5},
    "200 patients, 5 folds": {"n": 200, "folds": 5},
    "400 training, 400 test": {"train": 400, "test": 400},
}


def share(values: list) -> str:
    """A share with its 95 % interval, for the table."""
    n, hits = len(values), float(np.sum(values))
    low, high = binomtest(round(hits), n).proportion_ci(method="wilson")
    return f"{100 * hits / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {n}"


def run(design: dict, trials: int) -> list[dict]:
    work = joblib.delayed(judged)
    return joblib.Parallel(-1)(work(number, design) for number in range(trials))


def margin_signal(design: dict, trials: int) -> float:
    """The signal at which the expected AUROC is the margin below that of EQUAL."""
    signals = [0.85, 0.9, 0.95, EQUAL]
    asked = design | {"signals": signals, "fresh": 4000, "redraws": 2, "resamples": 2}
    rows = joblib.Parallel(-1)(joblib.delayed(trial)(number, asked) for number in range(trials))
    means = np.mean([truths for _, truths in rows], axis=0)
    return float(np.interp(means[-1] - differences.MARGIN, means, signals))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes; nothing is kept")
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--only", nargs="*", default=QUESTIONS)
    options = parser.parse_args()
    trials = 2 if options.quick else options.trials
    common = {"seed": 0, "redraws": 4 if options.quick else REDRAWS, "resamples": RESAMPLES}
    rows = []

    def keep(question: str, design: str, what: str, value: str, target: str) -> None:
        row = {"question": question, "design": design, "counted": what, "found": value}
        rows.append(row | {"target": target})
        print(" × ".join([question, design, what, value, target]), flush=True)
        if not options.quick:
            files.save_csv(OUT, pd.DataFrame(rows))

    for name, sizes in DESIGNS.items() if "pair" in options.only else ():
        found = run(common | sizes | {"signals": [EQUAL] * 2, "fresh": 4000}, trials)
        for what, target in (
            ("different, of pairs", "at most 6 %"),
            ("different, of pairs (patients alone)", "nominal 5 %"),
        ):
            keep("equal pair", name, what, share([row[what] for row in found]), target)
        truth = np.mean([row["truths"] for row in found])
        for kind, target in (("ends", "93 to 97 %"), ("patients", "nominal 95 %")):
            inside = [row[kind][0] <= truth <= row[kind][1] for row in found]
            words = "coverage" + (" (patients alone)" if kind == "patients" else "")
            keep("equal pair", name, words, share(inside), target)
    for k in (4, 13) if "family" in options.only else ():
        for name in ("80 training, 400 test", "100 patients, 5 folds"):
            several = max(1, trials // (2 if k == 4 else 4))  # each has as many arms as k
            found = run(common | DESIGNS[name] | {"signals": [EQUAL] * k}, several)
            for what in ("different, any after Holm", "different, any after Holm (patients alone)"):
                target = "at most 7 %" if "alone" not in what else "nominal 5 %"
                keep(f"{k} equal", name, what, share([row[what] for row in found]), target)
    if "margin" in options.only:
        sizes = {"train": 3000, "test": 10_000}  # fewer can hardly show equivalence
        signal = margin_signal(common | sizes, 1 if options.quick else 40)
        name, what = "3,000 training, 10,000 test", "equivalent, of pairs"
        for question, other, target in (
            ("at the margin", signal, "at most 6 %"),
            ("equal pair", EQUAL, "power"),
        ):
            found = run(common | sizes | {"signals": [EQUAL, other]}, trials // 2 or 1)
            keep(question, name, what, share([row[what] for row in found]), target)
    for truth in ("plain", "small") if "claims" in options.only else ():
        work = joblib.delayed(of_claims)
        found = joblib.Parallel(-1)(work(number, truth) for number in range(trials))
        for what in found[0]:
            keep("true claims", truth, what, share([row[what] for row in found]), "at most 5 %")
    of_all = [("gaps of groups", of_groups, GROUPS)]
    sites = {f"{k} sites, tau {tau:g}": (k, tau) for k in (4, 8) for tau in (0, 0.4)}
    of_all.append(("heterogeneity", of_sites, sites))
    for question, one_study, designs in of_all if "gaps" in options.only else ():
        for name, design in designs.items():
            work = joblib.delayed(one_study)
            found = joblib.Parallel(-1)(work(number, *design) for number in range(trials))
            for what in found[0]:
                keep(question, name, what, share([row[what] for row in found]), "93 to 97 %")


if __name__ == "__main__":
    main()
