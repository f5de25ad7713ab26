"""The facts of the checklist: what the files of a study say about it, in short sentences.

Facts are read from the grid file, the cards, the manifests, the records of the runs and the
summaries, as far as these exist. Each function returns a dictionary of facts. Its keys are the
names that ``medlib/show/checklist.yaml`` uses.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from medlib.core import backbones, heads, settings
from medlib.data import cards, flow, manifest
from medlib.data.cards import Card
from medlib.data.passport import ALL
from medlib.files import read_record
from medlib.grid import address, gridfile, states
from medlib.show import names
from medlib.show.checklist import OPEN, WRITE, Fact, by_task

KNOWN = ("age", "sex", "site")  # columns of patients that a manifest may have
NO_SUMMARY = "notebook 05 has not run on these results"
MOST_REASONS = 4  # how many reasons of exclusion are named for a task
AUGMENTED = "mirrored; turned by 10°, scaled by 10 %, shifted by 5 % at most; contrast, brightness"


def gather(grid: dict, results: Path | str, phantoms: bool = False) -> dict[str, Fact]:
    """All facts of a grid. If the file of a fact is missing, the fact says so."""
    of_task = {task: cards.read(task) for task in grid["tasks"]}
    records = states.records(grid, results)
    return (
        of_cards(of_task, phantoms)
        | of_grid(grid, of_task)
        | of_manifests(results, of_task)
        | of_records(records)
        | of_results(results)
    )


def of_cards(of_task: Mapping[str, Card], phantoms: bool = False) -> dict[str, Fact]:
    """Facts from the cards of the tasks."""
    tasks = {task: f"{card.title} ({card.modality})" for task, card in of_task.items()}
    sources = Fact(by_task({t: f"{card.source} ({card.licence})" for t, card in of_task.items()}))
    if phantoms:
        sources = Fact("Phantoms, drawn by medlib/data/phantoms.py", "no real data were used")
    return {
        "tasks": Fact(f"{'Phantoms of: ' * phantoms}{by_task(tasks)}"),
        "sources": sources,
    }


def of_grid(grid: dict, of_task: Mapping[str, Card]) -> dict[str, Fact]:
    """Facts from the grid file, which is written before any run."""
    regimes = {regime: grid[regime] for regime in settings.REGIMES if grid[regime]}
    printed = [names.REGIMES[regime] for regime in regimes]
    rows = [backbones.get(name) for name in sorted(gridfile.all_backbones(grid))]
    kinds = ", ".join(sorted({row.family for row in rows}))
    primary = names.REGIMES[gridfile.primary(grid)]
    once = [names.REGIMES[r] for r in regimes if r != "frozen" and len(gridfile.seeds(grid, r)) < 2]
    seeds = [f"{names.REGIMES[r]}: {len(gridfile.seeds(grid, r))} seed(s)" for r in regimes]
    balanced = [names.REGIMES[r] for r in regimes if grid[r].get("balanced")]
    weighed = f"Classes are weighed by the inverse of their frequency: {', '.join(balanced)}"
    pretrained: dict[str, list[str]] = {}
    for row in rows:
        kind = names.PRETRAININGS.get(row.pretraining, row.pretraining)
        pretrained.setdefault(kind, []).append(names.display_names(row.name))
    weights = [f"{kind}: {', '.join(of)}" for kind, of in pretrained.items()]
    declared = f"declared before the runs: all pairs of pretrained backbones, {primary}"
    volumes = {task: _volumes(grid, card) for task, card in of_task.items()}
    masked = ", ".join(task for task, how in volumes.items() if how and how.needs_mask)
    drawn = f"who drew the masks by which slices of {masked} are chosen or cropped"
    return {
        "aims": Fact(f"{grid['title']}. Hypotheses {declared}; and the paper's claims"),
        "methods": Fact(f"Deep learning: {len(rows)} backbones ({kinds}), {', '.join(printed)}"),
        "preprocessing": Fact(_preprocessing(grid, of_task)),
        "masks": Fact("", drawn, WRITE) if masked else Fact("Nobody: pixels are read."),
        "subsets": Fact(_subsets(grid, of_task)),
        "weights": Fact("; ".join(weights)),
        "training": Fact(". ".join(_training(grid, regime) for regime in regimes)),
        "seeds": Fact(
            "; ".join(seeds), f"a second training of {', '.join(once)} arms" if once else ""
        ),
        "imbalance": Fact(weighed if balanced else "No class is weighed, and none is resampled"),
    }


def _preprocessing(grid: dict, of_task: Mapping[str, Card]) -> str:
    shape = {"squash": "The whole image, made square", "crop": "The centre of the image"}
    sizes = ", ".join(f"{size} px" for size in gridfile.image_sizes(grid))
    prepared = grid["prepare"]
    grey = {t: f"grey values {card.grey_values}" for t, card in of_task.items() if card.grey_values}
    volumes = {
        task: f"grey values between percentiles {volumes.percentiles[0]:g} and "
        f"{volumes.percentiles[1]:g} of the head"
        for task, card in of_task.items()
        if (volumes := _volumes(grid, card))
    }
    words = [f"{shape[prepared.get('geometry', 'squash')]}, {sizes}", by_task(grey | volumes)]
    return ". ".join(filter(None, words))


def _volumes(grid: dict, card: Card) -> cards.Volumes | None:
    own = grid["prepare"].get("volumes", {})
    return card.with_settings(volumes=own if card.volumes else {}).volumes


def _subsets(grid: dict, of_task: Mapping[str, Card]) -> str:
    """Which slices of volumes are used, and which shares of the labels."""
    slices = {
        task: f"{volumes.slices or 'all'} slices of a volume ({names.spoken(volumes.choice)})"
        for task, card in of_task.items()
        if (volumes := _volumes(grid, card))
    }
    shares = {}
    for task in of_task:
        own = gridfile.label_fractions(grid, task) if grid["frozen"] else []
        tuned = [gridfile.label_fraction(grid, task, r) for r in settings.TRAINED if grid[r]]
        shares[task] = "labels of " + ", ".join(f"{s:.3g}" for s in sorted({*own, *tuned})[::-1])
        shares[task] += " of the training patients"
    return " ".join(filter(None, [by_task(slices), by_task(shares)]))


def _training(grid: dict, regime: str) -> str:
    """How the arms of a regime are trained."""
    n = sum(run.regime == regime for run in gridfile.runs(grid))
    if regime == "frozen":
        of = [
            f"{names.HEADS[h]} ({len(heads.HEADS[h].candidates)} candidates)"
            for h in grid[regime]["heads"]
        ]
        return f"Frozen: {', '.join(of)}; {n:,} models"
    known = {f for f in settings.FineTuning.__dataclass_fields__ if f in grid[regime]}
    how = settings.FineTuning(**{name: grid[regime][name] for name in known})
    rates = ", ".join(f"{rate:g}" for rate in how.learning_rates)
    steps = f"AdamW, learning rates {rates}, {how.epochs} epochs, batches of {how.batch_size}"
    decay = f"weight decay {how.weight_decay:g}, warm-up and cosine decay"
    return f"{names.REGIMES[regime]}: {steps}, {decay}; images are {AUGMENTED}; {n:,} models"


def of_manifests(results: Path | str, of_task: Mapping[str, Card]) -> dict[str, Fact]:
    """Facts from the manifests that notebook 01 has written: who is in the study."""
    own = ("classes", "counts", "exclusions", "split", "sizes", "missing", "demographics", "sites")
    words: dict[str, dict[str, str]] = {name: {} for name in own}
    paths = {task: address.manifest(results, task) for task in of_task}
    unknown, absent = {}, [task for task, path in paths.items() if not path.is_file()]
    for task in [task for task in of_task if task not in absent]:
        rows, excluded = manifest.read_rows(paths[task]), manifest.read_excluded(paths[task])
        classes = manifest.classes(rows, of_task[task])
        numbers = flow.table(rows, classes, excluded)
        words["classes"][task] = ", ".join(classes)
        people = rows.drop_duplicates("patient_id")
        told = [name for name in KNOWN if name in rows and (people[name] != "").any()]
        words["counts"][task], words["exclusions"][task] = _counts(numbers), _exclusions(numbers)
        words["split"][task] = _split(rows, of_task[task], address.seeds(results, task))
        words["sizes"][task] = _sizes(numbers)
        words["missing"][task] = _missing(people, told)
        words["demographics"][task] = _people(people, told)
        words["sites"][task] = (
            f"{people['site'].replace('', pd.NA).nunique()} sites" if "site" in told else ""
        )
        if lacking := [name for name in KNOWN if name not in told]:
            unknown[task] = f"its manifest does not contain {', '.join(lacking)}"
    not_there = f"not prepared: {', '.join(absent)}" if absent else ""
    facts = {
        name: Fact(by_task({t: w for t, w in of_name.items() if w}), not_there)
        for name, of_name in words.items()
    }
    if not absent and unknown:
        facts["demographics"] = facts["demographics"]._replace(lacks=by_task(unknown), state=OPEN)
    without = [task for task, w in words["sites"].items() if not w]
    if not absent and without:
        said = f"the manifests of {', '.join(without)} contain no site"
        facts["sites"] = facts["sites"]._replace(lacks=said, state=OPEN)
    return facts


def _counts(numbers: pd.DataFrame) -> str:
    first = numbers.groupby("stage", sort=False).first()
    n, used = first["count"], first.loc[flow.KEPT]
    left = f"{n[flow.EXCLUDED]:,} excluded, {n[flow.COPIES]:,} copies dropped"
    patients = f"{used['patients']:,} patients, {used['count']:,} {used['unit']}"
    return f"{n[flow.FOUND]:,} entries found, {left}; used {patients}"


def _exclusions(numbers: pd.DataFrame) -> str:
    """What was left out of a task, by reason."""
    rows = numbers[numbers["stage"].isin([flow.EXCLUDED, flow.COPIES])]
    rows = rows[rows["name"] != flow.ALL_REASONS].sort_values(
        "count", ascending=False, kind="stable"
    )
    named = [f"{count:,} × {name}" for name, count in rows[["name", "count"]].values[:MOST_REASONS]]
    others = rows["count"].iloc[MOST_REASONS:].sum()
    return (
        "; ".join([*named, *([f"{others:,} for other reasons"] if others else [])])
        or "nothing left out"
    )


def _sizes(numbers: pd.DataFrame) -> str:
    """The numbers of patients of each side by class, and the smallest and largest fold."""
    patients = numbers.set_index(["stage", "name"])["patients"]
    folds = [stage for stage in numbers["stage"].unique() if stage.startswith("fold ")]
    sides = [side for side in manifest.SPLITS if side in set(numbers["stage"])]
    of_side = []
    for stage in sides or [flow.KEPT]:
        counts = patients[stage].drop(ALL)
        classes = ", ".join(f"{n:,} {names.spoken(name)}" for name, n in counts.items())
        of_side.append(f"{stage.replace(flow.KEPT, 'all')} {patients[stage, ALL]:,} ({classes})")
    if folds:
        each = [patients[fold, ALL] for fold in folds]
        ends = sorted({min(each), max(each)})
        of_side.append(f"{len(folds)} folds of {' to '.join(f'{n:,}' for n in ends)}")
    return f"patients: {'; '.join(of_side)}"


def _split(rows: pd.DataFrame, card: Card, seeds: Path) -> str:
    seed = read_record(seeds).get("split")
    drawn = "fixed beforehand" if seed is None else f"drawn with seed {seed}, classes stratified"
    if manifest.split_column(rows) == "split":
        return f"the {card.split} test set; {drawn}"
    repeats = len(manifest.side_columns(rows))
    more = f", {repeats} times" if repeats > 1 else ""
    return f"cross-validation by patient, {rows['fold'].nunique()} folds{more}; {drawn}"


def _missing(people: pd.DataFrame, told: Iterable[str]) -> str:
    """For each attribute of the manifest: how many patients lack it, if any."""
    unknown = [
        f"{name} of {n:,} patients" for name in told if (n := int((people[name] == "").sum()))
    ]
    return f"not known: {', '.join(unknown)}" if unknown else ""


def _people(people: pd.DataFrame, told: Iterable[str]) -> str:
    """Age, sex and number of sites of the patients, on each side of an official split."""
    sides = {"": people}
    if manifest.split_column(people) == "split":
        sides = {f"{side} ": part for side, part in people.groupby("split", sort=False)}
    lines = []
    for side, part in sides.items():
        words = []
        if "age" in told and len(ages := pd.to_numeric(part["age"], errors="coerce").dropna()):
            words.append(f"age {ages.median():.0f} (median; {ages.min():.0f} to {ages.max():.0f})")
        if "sex" in told:
            shares = part["sex"].replace("", pd.NA).value_counts(normalize=True)
            words += [f"{100 * share:.0f} % {name}" for name, share in shares.items()]
        if "site" in told:
            words.append(f"{part['site'].replace('', pd.NA).nunique()} sites")
        lines += [f"{side}{', '.join(words)}"] if words else []
    return "; ".join(lines)


def of_records(records: Mapping[address.Address, dict]) -> dict[str, Fact]:
    """Facts from the records of the runs: software, hardware, and the sizes of the networks."""
    none = "no run is complete" * (not records)
    versions, gpus, commits, sizes = {}, set(), set(), {}
    for run, record in records.items():
        for package, version in record.get("versions", {}).items():
            versions.setdefault(package, set()).add(str(version))
        hardware = record.get("hardware", {})
        gpus.add(hardware.get("gpu") or f"CPU ({hardware.get('machine', 'unknown')})")
        commits.add(str(record.get("git_commit")))
        if parameters := record.get("how", {}).get("parameters"):
            sizes[run.backbone] = parameters
    packages = [f"{name} {' and '.join(sorted(of))}" for name, of in sorted(versions.items())]
    million = [
        f"{names.display_names(name)} ({n / 1e6:.1f} million, {backbones.get(name).embedding})"
        for name, n in sorted(sizes.items())
    ]
    commit = f"git commit {', '.join(sorted(commits))}" if records else ""
    return {
        "software": Fact("; ".join(filter(None, [", ".join(packages), commit])), none),
        "hardware": Fact(", ".join(sorted(gpus)), none),
        "models": Fact(f"Parameters and embedding: {', '.join(million)}" if million else "", none),
        "protocol": Fact(f"The grid file, {commit}" if commit else "The grid file", none),
    }


def of_results(results: Path | str) -> dict[str, Fact]:
    """Facts from the summaries, and whether models were kept."""
    summary, pairs = Path(results, "summary_over_seeds.csv"), Path(results, "differences.csv")
    kept = any(Path(results, "runs").glob("*/*/*/*/model.json"))
    facts = {
        "metrics": Fact("", NO_SUMMARY),
        "intervals": Fact("", NO_SUMMARY),
        "performance": Fact("", NO_SUMMARY),
        "sample_size": Fact("", "notebook 08 has not run on these results"),
        "saved_models": Fact(
            "Models are kept beside their runs" * kept, "" if kept else "no trained model was kept"
        ),
    }
    if summary.is_file():
        table = pd.read_csv(summary)
        printed = [names.METRICS[name] for name in names.METRICS if name in set(table["metric"])]
        facts["metrics"] = Fact(", ".join(printed))
        facts["intervals"] = Fact(
            "95 % intervals by bootstrap, over test patients, and over training patients as well; "
            "paired differences on the same patients, p-values corrected by Holm's method"
        )
        area = table[(table["metric"] == "auroc") & (table["head"] == "linear")]
        ends = area.groupby("task", sort=False)["value"].agg(["size", "min", "max"])
        ranges = {
            t: f"AUROC of {n} arms {low:.3f} to {high:.3f}" for t, n, low, high in ends.itertuples()
        }
        facts["performance"] = Fact(by_task(ranges))
    if pairs.is_file():
        least = pd.read_csv(pairs).groupby("task", sort=False)["detectable"].median().dropna()
        words = {
            t: f"a difference of {value:.3f} would be found four times in five"
            for t, value in least.items()
        }
        facts["sample_size"] = Fact(by_task(words) or "No pair of arms can be tested")
    return facts
