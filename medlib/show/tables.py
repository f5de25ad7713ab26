"""Tables of the study, from tidy frames, as CSV, Markdown, LaTeX and HTML."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from medlib.files import save_csv, save_text
from medlib.show import answers, names
from medlib.stats.metrics import LOSSES

LONG = 44  # letters; a longer column is wrapped
WIDE, TALL = 150, 60  # letters and lines of a LaTeX table; a larger one becomes several
ONE_TRAINING, FEW, ENOUGH = "†", "‡", 20  # patients of a class: with fewer it is marked
FEW_WORDS = f"{FEW}: a class has fewer than {ENOUGH} patients"
MARKS = (
    f"{ONE_TRAINING}: the interval is over test patients alone, because training was not repeated, "
    f"or because draws of so few patients lacked a class; {FEW_WORDS}; due to training: the share "
    "of the variance of the AUROC that is due to training."
)
AIMS = ("sensitivity", "specificity")  # of thresholds
OVER_CLASSES = (
    "auroc",
    "auprc",
    "balanced_accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
)
MANY = 10  # columns; on paper, a table with more of them has a page in landscape format
HTML = jinja2.Template(
    """<div class="scroll{{ ' wide' if names|length > many }}" tabindex="0" role="region" \
aria-label="{{ caption or 'Table' }}"><table>{% if caption %}<caption>{{ caption }}</caption>\
{% endif %}
<thead><tr>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for cells in lines %}<tr>{% for cell in cells -%}
<td{{ wide(cell) }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% if note %}<p class="note">{{ note }}</p>{% endif %}\n""",
    autoescape=True,
)
HTML.globals["many"] = MANY
HTML.globals["wide"] = lambda cell: Markup(" class=long" if len(cell) > 70 else "")


def main_table(
    table: pd.DataFrame, tasks: names.Tasks, metrics: Sequence[str] = names.PAPER_METRICS
) -> pd.DataFrame:
    """Make the long table wide: one row per task, backbone, regime, head and label fraction.

    Columns: task (its title), backbone (its printed name), pretraining, regime, head,
    label_fraction, n_patients, candidates, one per metric, and training (the share of training in
    the variance of the AUROC). A cell reads `value [low, high]`, with the interval of the
    procedure. Where that is unknown, the interval is over test patients alone, and
    :data:`ONE_TRAINING` follows it. A cell ends in :data:`FEW` if it is a mean over classes and one
    of them has fewer than 20 patients. It is empty where there is no result. Rows are sorted by
    task (in the order of `tasks`), backbone (in the order of figures), regime and head; larger
    label fractions come first.
    """
    rows = names.shown_rows(table, tasks, metrics)
    known, cells = rows["procedure_low"].notna(), []
    low = rows["procedure_low"].where(known, rows["ci_low"])
    high = rows["procedure_high"].where(known, rows["ci_high"])
    for row, a, b in zip(rows.itertuples(), low, high, strict=True):
        one = "" if known[row.Index] else ONE_TRAINING
        few = FEW if row.rarest < ENOUGH and row.metric in OVER_CLASSES else ""
        cells.append(
            f"{row.value:.3f}" + (f" [{a:.3f}, {b:.3f}]{one}" if pd.notna(a) else "") + few
        )
    rows = rows.assign(cell=cells)
    shares = rows[rows["metric"] == "auroc"].assign(metric="training")
    shares["cell"] = _percent(shares["training_share"])
    wide = _wide(pd.concat([rows, shares]), tasks, [*metrics, "training"], "")
    wide["task"] = wide["task"].map(lambda task: tasks[task]["title"])
    return wide


def ties(
    table: pd.DataFrame, tasks: names.Tasks, metrics: Sequence[str] = names.PAPER_METRICS
) -> pd.DataFrame:
    """Which cells of :func:`main_table` have the best value of their task or one equivalent to it.

    `table` has the columns that :func:`main_table` takes, and the column `tied` (bool) of
    `differences.tied_with_best`. The result has a column per metric, and rows in the order of
    :func:`main_table`.
    """
    rows = names.shown_rows(table, tasks, metrics).assign(cell=table["tied"])
    return _wide(rows, tasks, metrics, False)[list(metrics)].astype(bool)


def _wide(
    rows: pd.DataFrame, tasks: names.Tasks, metrics: Sequence[str], empty: object
) -> pd.DataFrame:
    """Long rows as a wide table: the column `cell` as one column per metric, rows in order."""
    order = {"task": list(tasks), "name": list(names.in_order(rows)["name"])}
    order |= {"regime": list(names.REGIMES), "head": list(names.HEADS)}
    for column, categories in order.items():
        rows[column] = pd.Categorical(rows[column], categories)
    keys = ["task", "name", "pretraining", "regime", "head", "label_fraction", "n_patients"]
    keys += ["candidates"]
    wide = rows.pivot(index=keys, columns="metric", values="cell")
    wide = wide.reindex(columns=list(metrics)).astype(object).fillna(empty)
    wide = wide.rename_axis(columns=None).reset_index()
    by = [*order, "label_fraction"]
    wide = wide.sort_values(by, ascending=[column != "label_fraction" for column in by])
    wide = wide.astype(dict.fromkeys(order, str)).rename(columns={"name": "backbone"})
    return wide.reset_index(drop=True)


def all_metrics(table: pd.DataFrame) -> list[str]:
    """The metrics of a long table, in the order in which they are printed."""
    return [name for name in names.METRICS if name in set(table["metric"])]


def claims_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """`claims.verdicts` as printed: a row for each part of a claim, its effect and verdict."""
    words = {"within the margin": "within ± {:g}", "above -margin": "above −{:g}"}
    pairs = zip(verdicts["expected"], verdicts["margin"], strict=True)
    # each backbone once, out of "task: backbone, regime; …"
    missing = [dict.fromkeys(re.findall(": (.*?),", a)) or [a] for a in verdicts["missing"]]
    expected = [words.get(expected, expected).format(margin) for expected, margin in pairs]
    columns = {"claim": verdicts["claim"], "contrast": verdicts["part"], "expected": expected}
    power = _percent(verdicts["power"])
    columns |= {"difference in AUROC": _effects(verdicts), "power": power}
    columns |= {"verdict": verdicts["verdict"], "missing": list(map(", ".join, missing))}
    return pd.DataFrame(columns | {"note": verdicts["note"]})


def untested(verdicts: pd.DataFrame) -> str:
    """If no claim was tested, a sentence: which backbones are missing, and how to get them."""
    if (verdicts["verdict"] != "not tested").any():
        return ""
    keys = itertools.chain.from_iterable(re.findall(": (.*?),", m) for m in verdicts["missing"])
    lacking = dict.fromkeys(keys)
    why = f"they are about backbones that were not run ({', '.join(lacking)})"
    if not lacking:
        why = "their arms were trained once only"
    return (
        f"None of the paper's claims can be tested with these runs: {why}. The grid `paper` has "
        "all of them: `make plan GRID=paper` says what would run, and `make weights GRID=paper` "
        "fetches the weights."
    )


def best_arms(table: pd.DataFrame, tasks: names.Tasks, metric: str) -> pd.DataFrame:
    """`recommendation.recommend` as printed: a row per arm, the best of a task first.

    Where only random controls were run, one row says so.
    """
    if table.empty:
        return pd.DataFrame({"task": [answers.EVERY_TASK], "verdict": [answers.ONLY_RANDOM]})
    apart = with_ends(table, "{:+.3f}", ("difference", "best_low", "best_high"))
    verdict = np.select(
        [table["recommended"], table["among_best"], table["why"] == ""],
        ["recommended", "cannot be told from the best", "worse than the best"],
        table["why"],
    )
    columns = {"task": [answers.title(task, tasks) for task in table["task"]]}
    names_of = zip(table["backbone"], table["pretraining"], strict=True)
    columns |= {"backbone": list(itertools.starmap(names.full_name, names_of))}
    columns |= {"regime": table["regime"], "head": table["head"]}
    columns |= {"label_fraction": table["label_fraction"], "n_patients": table["n_patients"]}
    columns |= {metric: table["value"].map("{:.3f}".format)}
    columns |= {"minus the best of the others": apart, "best in": _percent(table["share_best"])}
    columns |= {"seconds": table["seconds"].map("{:,.0f}".format)}
    columns |= {"million parameters": (table["parameters"] / 1e6).map("{:.1f}".format)}
    columns |= {"GB of memory": (table["memory"] / 2**30).map("{:.1f}".format)}
    return pd.DataFrame(columns | {"verdict": verdict})


def calibration_table(beside: pd.DataFrame) -> pd.DataFrame:
    """`calibration.beside_raw` as printed: a row for each backbone and kind of probabilities.

    `beside` also has the columns backbone and pretraining. With more than two classes, the slope is
    the mean over classes. The intercepts are then left out, because the intercepts of the classes
    cancel each other in a mean.
    """
    whole, coefficient = beside["class"] == "", beside["metric"].isin(["slope", "intercept"])
    if (whole & coefficient).any():
        beside = beside[whole & (beside["metric"] != "intercept")]
    rows = names.in_order(beside)
    named = beside.assign(cell=with_ends(beside, "{:.3f}")).merge(
        rows[["backbone", "pretraining", "name"]]
    )
    wide = named.pivot(index=["name", "probabilities"], columns="metric", values="cell")
    order = pd.MultiIndex.from_product([rows["name"], beside["probabilities"].unique()])
    wide = wide.loc[order, named["metric"].unique()].rename_axis(["backbone", "probabilities"])
    wide = wide.rename(columns={"slope": "calibration slope", "intercept": "calibration intercept"})
    return wide.rename_axis(columns=None).reset_index()


def thresholds_table(points: pd.DataFrame) -> pd.DataFrame:
    """`operating.operating_points` as printed: a row for each backbone, class and rule.

    `points` also has the columns backbone and pretraining. PPV and NPV at a stated prevalence have
    separate columns.
    """
    points = points.reset_index(drop=True)
    own = points.groupby(["class", "backbone"])["prevalence"].transform("first")
    stated = np.where(
        points["prevalence"] == own, "", points["prevalence"].map(" at {:.3g}".format)
    )
    heads = {"ppv": "PPV", "npv": "NPV"}
    columns = points["metric"].replace(heads) + stated
    before = points["validation"].map(" ({:.2f})".format).where(points["metric"].isin(AIMS), "")
    at = points["threshold"].map("{:.3g}".format).where(points["threshold"].notna(), "")
    rows = names.in_order(points)[["backbone", "pretraining", "name"]]
    named = points.assign(cell=with_ends(points, "{:.2f}") + before, at=at, column=columns)
    named = named.merge(rows)
    keys = ["class", "name", "rule", "at"]
    wide = named.pivot(index=keys, columns="column", values="cell")
    wide = wide.loc[:, list(dict.fromkeys(columns))].rename_axis(columns=None).reset_index()
    order = {"class": points["class"], "name": rows["name"], "rule": points["rule"]}
    for column, values in order.items():
        wide[column] = pd.Categorical(wide[column], list(dict.fromkeys(values)))
    wide = wide.sort_values(list(order)).astype(dict.fromkeys(order, str))
    return wide.rename(columns={"name": "backbone", "at": "threshold"}).reset_index(drop=True)


def classes_table(rates: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """`diagnostics.by_class` as printed: a row for each class and backbone.

    `rates` also has the columns backbone and pretraining. A class with fewer than :data:`ENOUGH`
    patients has :data:`FEW` after their number.
    """
    order = names.in_order(rates)
    named = rates.assign(cell=with_ends(rates, "{:.3f}")).merge(
        order[["backbone", "pretraining", "name"]]
    )
    wide = named.pivot(index=["label", "name"], columns="metric", values="cell")
    wide = wide.loc[pd.MultiIndex.from_product([classes, order["name"]]), rates["metric"].unique()]
    wide = wide.rename_axis(["class", "backbone"]).rename_axis(columns=None).reset_index()
    n = wide["class"].map(rates.groupby("label")["n_patients"].max())
    wide.insert(1, "n_patients", n.map("{:,}".format) + np.where(n < ENOUGH, FEW, ""))
    return wide.assign(**{"class": wide["class"].map(names.spoken)})


def with_ends(
    table: pd.DataFrame, number: str, columns: Sequence[str] = ("value", "ci_low", "ci_high")
) -> list[str]:
    """A cell for each row: its value with its interval, if it has one; "" without a value.

    ``number`` is the format of a number, ``columns`` are those of the value and of the two ends.
    """
    words = f"{number} [{number}, {number}]".format
    cells = []
    for value, low, high in table[list(columns)].itertuples(index=False):
        cell = words(value, low, high) if pd.notna(low) else number.format(value)
        cells.append(cell if pd.notna(value) else "")
    return cells


def confounds_table(parts: pd.DataFrame, tasks: names.Tasks) -> pd.DataFrame:
    """`claims.confounds` as printed: rows are task, regime and size, and columns are parts."""
    titles = {task: card["title"] for task, card in tasks.items()} | {"all": "mean over all tasks"}
    titles = [titles.get(task, task) for task in parts["task"]]
    cells = parts.assign(cell=_effects(parts), task=titles)
    keys = ["task", "regime", "size"]
    wide = cells.pivot(index=keys, columns="part", values="cell")
    order = cells[keys].drop_duplicates()
    wide = wide.loc[[tuple(row) for row in order.itertuples(index=False)], parts["part"].unique()]
    return wide.rename_axis(columns=None).reset_index()


def _percent(shares: pd.Series) -> pd.Series:
    """Whole percent; empty if a share is unknown."""
    return shares.map("{:.0%}".format).where(shares.notna(), "")


def _effects(table: pd.DataFrame) -> list[str]:
    """Differences with their intervals, or "not tested"."""
    words = "{:+.3f} [{:+.3f}, {:+.3f}]".format
    rows = table[["difference", "procedure_low", "procedure_high"]].itertuples(index=False)
    return [words(*row) if pd.notna(row.procedure_low) else "not tested" for row in rows]


def save_table(
    df: pd.DataFrame,
    path_stem: Path,
    caption: str = "",
    note: str = "",
    best: pd.DataFrame | None = None,
    data: pd.DataFrame | None = None,
) -> list[Path]:
    """Write a table as `<stem>.csv`, `.md` (pipes), `.tex` (booktabs) and `.html` (a fragment).

    The CSV holds `data`, or else the frame as it is. The .tex needs only `\\usepackage{booktabs}`.
    If the frame has a column `task` (or `attribute`), a line separates the tasks. Cells where
    `best` (with the same rows and columns as `df`) is true are bold. Without `best`, the best value
    of each task and its ties are bold in every column of `METRICS`. Cells are compared by the
    number that they start with. The note ends with the licences of the backbones in the column
    `backbone`. Each file is written whole or not at all. Returns the paths.
    """
    readable = _readable(df)
    note = f"{note} {names.licences(df.get('backbone', ()))}".strip()
    bold = _best_cells(readable) if best is None else best.reset_index(drop=True)
    bold = bold.rename(columns=names.METRICS).reindex(columns=list(readable), fill_value=False)
    shown = readable.map(_text), bold, caption, note
    texts = {"md": markdown(*shown), "tex": _latex(*shown, Path(path_stem).name)}
    texts["html"] = html(*shown)
    paths = [Path(f"{path_stem}.{kind}") for kind in ("csv", *texts)]
    save_csv(paths[0], df if data is None else data)
    for path, text in zip(paths[1:], texts.values(), strict=True):
        save_text(path, text)
    return paths


def _best_cells(df: pd.DataFrame) -> pd.DataFrame:
    """Mark the best cell of each task and metric, if the task has at least two values."""
    best = pd.DataFrame(False, df.index, df.columns)
    if "task" in df:
        for column in df.columns.intersection(list(names.METRICS.values())):
            first = df[column].astype(str).str.extract(r"^(-?[\d.]+)", expand=False)
            values = pd.to_numeric(first, errors="coerce")
            if column in [names.METRICS[name] for name in LOSSES]:
                values = -values
            of_task = values.groupby(df["task"])
            best[column] = (values == of_task.transform("max")) & (of_task.transform("count") > 1)
    return best


def _readable(df: pd.DataFrame) -> pd.DataFrame:
    """The frame with the words of a printed table: headings, shares of labels, regimes."""
    df = df.reset_index(drop=True)  # a copy, with the unique index that a Styler needs
    if {"backbone", "pretraining"} <= set(df):
        pairs = zip(df["backbone"], df["pretraining"], strict=True)
        if all(weights.lower() in name.lower() for name, weights in pairs):
            del df["pretraining"]  # every name says it already
    if "label_fraction" in df:
        df["label_fraction"] = [f"{100 * fraction:g} %" for fraction in df["label_fraction"]]
    if "regime" in df:
        df["regime"] = df["regime"].replace(names.REGIMES)
    headings = {"label_fraction": "labels", "n_patients": "patients", **names.METRICS}
    headings["training"] = "due to training"
    return df.rename(columns=lambda name: headings.get(name, name.replace("_", " ")))


def _text(cell: object) -> str:
    """A cell as printed: a dash for no value, four digits of a number."""
    if pd.isna(cell) or cell == "":
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def markdown(
    df: pd.DataFrame, best: pd.DataFrame | None = None, caption: str = "", note: str = ""
) -> str:
    """A table of texts in Markdown, with the `best` cells bold."""
    df = df.map(_pipe)
    texts = df if best is None else df.where(~best, "**" + df + "**")
    texts = texts.rename(columns=_pipe)
    table = texts.to_markdown(index=False, disable_numparse=True)
    return "\n\n".join(part for part in (caption, table, note) if part) + "\n"


def _pipe(text: str) -> str:
    """A cell of a Markdown table: one line, in which bars and HTML are escaped."""
    return text.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")


def html(
    df: pd.DataFrame, marked: pd.DataFrame, caption: str = "", note: str = "", tag: str = "b"
) -> Markup:
    """A table as HTML, all of it escaped, with the `marked` cells inside a tag."""
    mark = Markup(f"<{tag}>{{}}</{tag}>").format
    cells = zip(df.map(_text).to_numpy(), marked[list(df)].to_numpy(), strict=True)
    lines = [[mark(text) if on else text for text, on in zip(*line, strict=True)] for line in cells]
    return Markup(HTML.render(names=list(df), lines=lines, caption=caption, note=note))


def _latex(df: pd.DataFrame, best: pd.DataFrame, caption: str, note: str, label: str) -> str:
    """One table, or several where one would leave the page: by groups of metrics, and by task.

    Without tasks, a table is cut after :data:`TALL` lines of text.
    """
    letters = df.apply(lambda column: column.str.len().max()).clip(upper=LONG)
    metrics = [column for column in df if column in names.METRICS.values()]
    keys = [column for column in df if column not in metrics]
    groups = [list(df)]
    if letters.sum() > WIDE and metrics:
        room = max(1, int((WIDE - letters[keys].sum()) // letters[metrics].max()))
        groups = [keys + metrics[i : i + room] for i in range(0, len(metrics), room)]
    by_task, apart = [df.index], _apart(df)
    if len(df) > TALL and apart:
        by_task = [part.index for _, part in df.groupby(apart, sort=False)]
    elif not apart:
        lines = np.ceil(df.apply(lambda column: column.str.len()) / LONG).max(axis=1)  # of each row
        by_task = [part.index for _, part in df.groupby((lines.cumsum() - lines) // TALL)]
    pieces, parts = list(itertools.product(by_task, groups)), []
    for number, piece in enumerate(pieces, start=1):
        name = f"tab:{label}-{number}" if len(pieces) > 1 else f"tab:{label}"
        parts.append(_latex_part(df.loc[piece], best.loc[piece], caption, note, name))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def _apart(df: pd.DataFrame) -> str:
    """The column whose values are separated by a line; "" for none."""
    return next((column for column in ("task", "attribute") if column in df), "")


def _latex_part(df: pd.DataFrame, best: pd.DataFrame, caption: str, note: str, label: str) -> str:
    bold = best.map({True: "textbf:--rwrap;", False: ""}.get)
    style = df.style.hide(axis="index").apply(lambda _: bold, axis=None)
    style = style.format(escape="latex").format_index(escape="latex", axis="columns")
    longest = df.apply(lambda column: column.str.len().max())
    columns = "".join(f"p{{{LONG / 2:g}em}}" if n > LONG else "l" for n in longest)
    look = {"column_format": columns, "hrules": True, "position_float": "centering"}
    lines = style.to_latex(caption=_tex(caption) or None, label=label, **look).splitlines()
    if apart := _apart(df):
        body = lines.index(r"\midrule") + 1
        for row in reversed(np.flatnonzero(df[apart] != df[apart].shift())[1:]):
            lines.insert(body + row, r"\midrule")
    # an article's line holds about 90 characters; a table that stays wider is centred on the page
    size = r"\footnotesize" if longest.clip(upper=LONG).sum() < 90 else r"\tiny"
    start = next(i for i, line in enumerate(lines) if line.startswith(r"\begin{tabular}"))
    lines.insert(start, rf"{size}\setlength{{\tabcolsep}}{{3pt}}\makebox[\textwidth][c]{{%")
    end = lines.index(r"\end{tabular}")
    lines[end] += "}" + (rf"\par\smallskip {_tex(note)}" if note else "")
    # in an article's default fonts < and > print as inverted ! and ?, and a minus sign not at all
    text = "\n".join(lines) + "\n"
    for sign, command in {"<": r"\textless{}", ">": r"\textgreater{}", "−": "$-$"}.items():
        text = text.replace(sign, command)
    return text


TEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}


def _tex(sentence: str) -> str:
    """Escape a caption or note: Styler escapes cells and headings, but not these."""
    return re.sub(r"[&%$#_{}\\^~]", lambda sign: TEX.get(sign[0], rf"\{sign[0]}"), sentence)
