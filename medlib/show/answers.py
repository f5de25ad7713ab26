"""The answer in words: which arm to take, what cannot be told from it, and whether tuning pays."""

from collections.abc import Iterator, Mapping

import pandas as pd

from medlib.show import names
from medlib.stats.recommendation import ALL_TASKS, RULE

PHANTOMS = "These are phantoms: nothing follows from this for real images."
MOST = 3  # arms that are named in a sentence


def arm_name(row: Mapping) -> str:
    """An arm as it is printed: "ViT-Ti (ImageNet), frozen, linear head"."""
    backbone = names.full_name(row["backbone"], row["pretraining"])
    head = f", {names.HEADS[row['head']]}" if row["regime"] == "frozen" else ""
    return f"{backbone}, {names.REGIMES[row['regime']]}{head}"


def title(task: str, tasks: names.Tasks) -> str:
    return "All tasks together" if task == ALL_TASKS else tasks[task]["title"]


def sentences(
    table: pd.DataFrame, regimes: pd.DataFrame, tasks: names.Tasks
) -> dict[str, list[str]]:
    """Sentences by title of the task, "All tasks together" first if there are several.

    ``table`` is `recommendation.recommend`. ``regimes`` are the rows of `differences.differences`
    whose contrast is "regimes"; their AUROCs are of the same labels. Phantoms say that they are.
    """
    order = sorted(table["task"].unique(), key=lambda task: task != ALL_TASKS)
    said = {}
    for task in order:
        of_task, pairs = table[table["task"] == task], regimes[regimes["task"] == task]
        lines = [*_choice(of_task), *_tuning(pairs)]
        phantoms = [card for card in tasks.values() if "(phantoms)" in card["title"]]
        said[title(task, tasks)] = lines + [PHANTOMS] * bool(phantoms)
    return said


def _choice(table: pd.DataFrame) -> Iterator[str]:
    """Which arm of a task is recommended, or why none is."""
    metric, margin = names.METRICS[table["metric"].iloc[0]], table["margin"].iloc[0]
    taken, best = table[table["recommended"]], table[table["among_best"]]
    if len(taken):
        row = taken.iloc[0]
        yield (
            f"Take {arm_name(row)}: {metric} {row['value']:.3f}, {_spent(row)}. It is shown to be no "
            f"worse than the best by more than {margin:g}, and it is the cheapest such arm."
        )
    elif len(best):
        row, needed = best.iloc[0], table["patients_needed"].iloc[0]
        yield (
            f"The data cannot tell: no arm is shown to be within {margin:g} of the best. The highest "
            f"{metric} is {row['value']:.3f} ({arm_name(row)})."
        )
        if pd.notna(needed):
            yield (
                f"About {needed:,.0f} test patients would tell (now {row['n_patients']:,.0f}), with "
                "as many times more training patients."
            )
    if len(best) > 1:
        some = "; ".join(arm_name(row) for _, row in best.head(MOST).iterrows())
        more = f"; and {len(best) - MOST} more" if len(best) > MOST else ""
        yield f"{len(best)} arms cannot be told from the best: {some}{more}."
    why = table["why"][table["why"] != ""].value_counts()
    yield from (f"{n} arm(s) are not judged: {words}." for words, n in why.items())


def _spent(row: Mapping) -> str:
    return f"{row['seconds']:,.3g} s" if pd.notna(row["seconds"]) else "costs not known"


def _tuning(pairs: pd.DataFrame) -> Iterator[str]:
    """Whether fine-tuning pays, on the same labels and with a linear head in either regime."""
    pairs = pairs[pairs["one_pretraining"] != "random"]
    known = pairs[pairs["procedure_low"].notna()]
    if pairs.empty:
        return
    if known.empty:
        yield "Whether fine-tuning pays cannot be said: each arm was trained once."
        return
    gains = (known["procedure_low"] > 0).sum()
    losses = (known["procedure_high"] < 0).sum()
    most = known.loc[known["difference"].abs().idxmax()]
    name = names.full_name(most["one_backbone"], most["one_pretraining"])
    yield (
        f"Fine-tuning instead of freezing is shown to help {gains} of {len(known)} backbones, and to "
        f"harm {losses}; the largest difference is {most['difference']:+.3f} "
        f"[{most['procedure_low']:+.3f}, {most['procedure_high']:+.3f}] ({name})."
    )


def text(said: Mapping[str, list[str]]) -> str:
    """The sentences as plain text, for a terminal."""
    parts = [f"{title}\n  " + "\n  ".join(lines) for title, lines in said.items()]
    return "\n".join([*parts, RULE])
