"""The answer in words: which arm to take, what cannot be told from it, and whether tuning pays."""

import textwrap
from collections.abc import Iterator, Mapping

import pandas as pd

from medlib.show import names
from medlib.stats import runs
from medlib.stats.recommendation import ALL_TASKS

PHANTOMS = "These are phantoms: nothing follows from this for real images."
EXPECTED = (
    "Phantom pretraining was on drawn textures of the kinds that these phantoms have, so a gain "
    "over random weights was to be expected."
)
EVERY_TASK = "Every task"
ONLY_RANDOM = "Only random controls were run, and they are never recommended."
TUNING = {"finetuned": "fine-tuning", "lora": "LoRA"}
MOST = 3  # arms that are named in a sentence


def arm_name(row: Mapping) -> str:
    """An arm as it is printed: "ViT-Ti (ImageNet), frozen, linear head"."""
    backbone = names.full_name(row["backbone"], row["pretraining"])
    head = f", {names.HEADS[row['head']]}" if row["regime"] == "frozen" else ""
    return f"{backbone}, {names.REGIMES[row['regime']]}{head}"


def arm_names(table: pd.DataFrame) -> list[str]:
    """The :func:`arm_name` of each row."""
    return [arm_name(row) for row in table.to_dict("records")]


def title(task: str, tasks: names.Tasks) -> str:
    return "All tasks together" if task == ALL_TASKS else tasks[task]["title"]


def sentences(
    table: pd.DataFrame, regimes: pd.DataFrame, costs: pd.DataFrame, tasks: names.Tasks
) -> dict[str, list[str]]:
    """Sentences by title of the task, "All tasks together" first if there are several.

    If only random controls were run, there is one sentence for all tasks.

    ``table`` is `recommendation.recommend`. ``regimes`` are the rows of `differences.differences`
    whose contrast is "regimes": both arms of a row have the same labels. ``costs`` is
    `summaries.costs`. If the data are phantoms, a sentence says so.
    """
    together = [ALL_TASKS] if (table["task"] == ALL_TASKS).any() else []
    phantoms = any("(phantoms)" in card["title"] for card in tasks.values())
    if table.empty:
        return {EVERY_TASK: [ONLY_RANDOM] + [PHANTOMS] * phantoms}
    said = {}
    for task in [*together, *tasks]:
        of_task, pairs = table[table["task"] == task], regimes[regimes["task"] == task]
        lines = [*_choice(of_task), *_tuning(pairs, costs)] if len(of_task) else [ONLY_RANDOM]
        expected = phantoms and bool((of_task["pretraining"] == "phantoms").any())
        said[title(task, tasks)] = lines + [EXPECTED] * expected + [PHANTOMS] * phantoms
    return said


def _choice(table: pd.DataFrame) -> Iterator[str]:
    """Which arm of a task is recommended, or why none is."""
    metric, margin = names.METRICS[table["metric"].iloc[0]], table["margin"].iloc[0]
    taken, best = table[table["recommended"]], table[table["among_best"]]
    if len(taken):
        row = taken.iloc[0]
        yield f"Take {arm_name(row)}: {metric} {row['value']:.3f}, {spent(row)}."
        words = f"no worse than the best by more than {margin:g}"
        yield f"It is shown to be {words}, and it is the cheapest such arm."
    elif len(best):
        row, needed = best.iloc[0], table["patients_needed"].iloc[0]
        yield f"The data cannot tell: no arm is shown to be within {margin:g} of the best."
        yield f"The highest {metric} is {row['value']:.3f} ({arm_name(row)})."
        if pd.notna(needed):
            n = f"{row['n_patients']:,.0f}"
            yield (
                f"About {needed:,.0f} test patients would be needed to tell (now {n}), with "
                "training patients increased by the same factor."
            )
    if len(best) > 1:
        some = "; ".join(arm_names(best.head(MOST)))
        more = f"; and {len(best) - MOST} more" if len(best) > MOST else ""
        yield f"{len(best)} arms cannot be told from the best: {some}{more}."
    why = table["why"][table["why"] != ""].value_counts()
    for words, n in why.items():
        yield f"{n} {'arm is' if n == 1 else 'arms are'} not judged: {words}."


def spent(row: Mapping) -> str:
    return f"{row['seconds']:,.3g} s" if pd.notna(row["seconds"]) else "costs not known"


def _tuning(pairs: pd.DataFrame, costs: pd.DataFrame) -> Iterator[str]:
    """Whether training the backbone pays, on the same labels, with a linear head in either regime.

    Its cost is the mean time of the trained arms, beside that of the same arms frozen.
    """
    pairs = pairs[pairs["one_pretraining"] != "random"]
    for regime, own in pairs.groupby("one_regime"):
        word, known = TUNING[regime], own[own["procedure_low"].notna()]
        if known.empty:
            yield f"Whether {word} pays cannot be said: each arm was trained once."
        else:
            gains, harms = (known["procedure_low"] > 0).sum(), (known["procedure_high"] < 0).sum()
            shown = f"is shown to help {gains} of {len(known)} backbones, and to harm {harms}."
            yield f"{word[0].upper()}{word[1:]} {shown}"
            most = known.loc[known["difference"].abs().idxmax()]
            name = names.full_name(most["one_backbone"], most["one_pretraining"])
            ends = f"[{most['procedure_low']:+.3f}, {most['procedure_high']:+.3f}]"
            value = f"{most['difference']:+.3f} {ends} ({name})"
            yield f"The largest difference to freezing is {value}."
        yield from _seconds(own, costs)


def _seconds(pairs: pd.DataFrame, costs: pd.DataFrame) -> Iterator[str]:
    """How long the arms of these pairs took, as means; nothing if it is not known."""
    means = []
    for side in ("one", "other"):
        sides = {f"{side}_{name}": name for name in ("backbone", "pretraining", "regime")}
        cells = pairs[["task", "head", "label_fraction", *sides]].rename(columns=sides)
        means.append(cells.merge(costs, on=runs.CELL)["seconds"].mean())
    if pd.notna(means).all():
        yield "On these labels it took {:,.3g} s per backbone; freezing took {:,.3g} s.".format(
            *means
        )


def table(said: Mapping[str, list[str]]) -> pd.DataFrame:
    """The sentences as a table: task and answer."""
    return pd.DataFrame(
        {"task": said.keys(), "answer": [" ".join(lines) for lines in said.values()]}
    )


def text(answered: pd.DataFrame) -> str:
    """The table of :func:`table` as plain text, for a terminal."""
    lines = [
        f"{row.task}:\n{textwrap.fill(row.answer, 98, initial_indent='  ', subsequent_indent='  ')}"
        for row in answered.itertuples()
    ]
    return "\n".join(lines)
