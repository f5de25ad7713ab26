"""Every figure and table of a grid: which rule makes it, and where the page shows it.

The Snakefile and the page are made from these entries; tests compare README's list, `.gitignore`
and the notebooks with them. A new figure or table is one entry, and the cell that draws it.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

FILES = {"figure": ("png", "pdf", "svg", "csv"), "table": ("csv", "md", "tex", "html")}
FILES["figure and table"] = (*FILES["figure"], *FILES["table"][1:])  # with one CSV
# rule of the Snakefile -> the notebook that it runs
NOTEBOOKS = {"prepare": "01_prepare_data", "compare": "06_compare_backbones"}
NOTEBOOKS |= {"costs": "07_weigh_costs", "claims": "08_test_claims", "look": "09_look_closer"}
NOTEBOOKS |= {"elsewhere": "11_test_elsewhere"}
NOTEBOOKS |= {"operate": "12_choose_thresholds", "subgroups": "13_compare_groups"}
DRAWING = tuple(rule for rule in NOTEBOOKS if rule != "prepare")  # from results
MODULES = {"checklist": "checklist"}  # rule -> the module of medlib.grid that it runs


@dataclass(frozen=True)
class Entry:
    """A figure, a table, or both under one name.

    ``stem`` is the name of its files; with ``{task}`` in it there is one for each task. Entries
    with the same ``heading`` share a section of the page.
    """

    stem: str
    rule: str
    heading: str
    kind: str = "figure"
    frozen: bool = False  # made only if the grid has a frozen regime
    promised: bool = True  # False: whether it can be made is known only when its rule runs
    patients: bool = False  # shows patients' images, so it is never committed
    folded: bool = False  # a long table: the page shows its caption, and a click opens it


ENTRIES = (  # in the order of the page
    Entry("answer", "compare", "The answer", "table"),
    Entry("recommendation", "compare", "The answer"),
    Entry("best_arms", "compare", "The answer", "table"),
    Entry("main_comparison", "compare", "The comparison"),
    Entry("main_table", "compare", "In numbers", "table"),
    Entry("claims", "claims", "The paper's claims", "table"),
    Entry("critical_difference", "claims", "Ranks over tasks"),
    Entry("differences_{regime}", "claims", "Paired differences", promised=False),
    Entry("differences_regimes", "claims", "Paired differences"),
    Entry("confounds", "claims", "Architecture or pretraining?", "table"),
    Entry("freezing", "compare", "What freezing costs"),
    Entry("size", "costs", "Does size pay?"),
    Entry("label_efficiency", "costs", "How many labels does it take?"),
    Entry("cost", "costs", "What does it cost?"),
    Entry("curves_{task}", "look", "Curves"),
    Entry("confusion_{task}", "look", "Confusions"),
    Entry("thresholds_{task}", "operate", "Thresholds", "table"),
    Entry("decision_{task}", "operate", "Thresholds"),
    Entry("reliability_{task}", "operate", "Calibration"),
    Entry("calibration_{task}", "operate", "Calibration", "table"),
    Entry("by_class_{task}", "look", "Each class against the others"),
    Entry("classes_{task}", "look", "Each class against the others", "table"),
    Entry("wrong_by_all_{task}", "look", "Where they go wrong", patients=True),
    Entry("wrong_{task}", "look", "Where they go wrong", patients=True),
    Entry("subgroups_{task}", "subgroups", "Subgroups and sites", "figure and table"),
    Entry("external_{task}", "elsewhere", "Tests elsewhere", "figure and table"),
    Entry("carried_{task}", "elsewhere", "Tests elsewhere", "table"),
    Entry("recalibrated_{task}", "elsewhere", "Tests elsewhere", "table"),
    Entry("shift_{task}", "elsewhere", "Tests elsewhere", patients=True),
    Entry("embeddings_{task}", "look", "Embeddings", frozen=True),
    Entry("seen_{task}", "look", "What they see", frozen=True, patients=True),
    Entry("flow_{task}", "prepare", "Who was included"),
    Entry("passport_{task}", "prepare", "Split passports"),
    Entry("checklist", "checklist", "What a paper must report", "table", folded=True),
    Entry("full_table", "compare", "All metrics, all heads", "table"),
)
WORDS = {  # the text under a heading
    "The answer": "The backbone, the regime and the head that are recommended for each task.",
    "The comparison": "Thick bars: other test patients. Thin lines: also other training patients.",
    "In numbers": "Linear heads. Bold: the best value of a task, and values equivalent to it.",
    "The paper's claims": "Written down before any result; judged only if every arm was run.",
    "Ranks over tasks": "A bar joins backbones that cannot be told apart.",
    "Paired differences": "Differences on the same patients. Grey: the equivalence margin.",
    "Architecture or pretraining?": "The parts of the difference between DINOv2 and CNNs.",
    "What freezing costs": "Each backbone frozen and fine-tuned, on the same labels.",
    "Does size pay?": "Vision transformers of different sizes with the same pretraining.",
    "How many labels does it take?": "A seed draws patients, and the weights of random controls.",
    "What does it cost?": "Results against time, parameters and memory, as means over tasks.",
    "Curves": "ROC and precision-recall curves, with 95 % bands over test patients.",
    "Confusions": "Confusion matrices: labels against predicted classes.",
    "Thresholds": "Chosen on validation patients, and applied to test patients.",
    "Each class against the others": "AUROC, sensitivity and specificity on test patients.",
    "Where they go wrong": "Images that all backbones get wrong, surest errors, least sure images.",
    "Calibration": "Accuracy against confidence.",
    "Subgroups and sites": "Results in groups of patients and at sites.",
    "Tests elsewhere": "The same models on another data set, on which none was trained.",
    "Embeddings": "Frozen embeddings on two principal components.",
    "What they see": "Local features of several backbones on the same images.",
    "Who was included": "Images that were found and excluded, and the patients of each side.",
    "Split passports": "Patients, images and classes of each side of the split.",
    "What a paper must report": "The items of CLAIM 2024 and TRIPOD+AI, with an answer to each.",
}


def files(rule: str, frozen: bool) -> list[str]:
    """The names of the files that a rule must write. ``{task}`` is not filled in."""
    own = [e for e in ENTRIES if e.rule == rule and e.promised and (frozen or not e.frozen)]
    return [f"{entry.stem}.{kind}" for entry in own for kind in FILES[entry.kind]]


def is_folded(stem: str) -> bool:
    """Whether the page folds a table of this name."""
    return any(entry.folded for entry in ENTRIES if entry.stem == stem)


def sections(stems: Collection[str]) -> Iterator[tuple[str, str, str, list[str]]]:
    """The sections of a page of these figures and tables: id, heading, words, stems."""
    for heading in dict.fromkeys(entry.heading for entry in ENTRIES):
        entries = [entry.stem for entry in ENTRIES if entry.heading == heading]
        pattern = "|".join(re.sub(r"\{\w+\}", ".+", stem) for stem in entries)
        own = sorted(stem for stem in stems if re.fullmatch(pattern, stem))
        if own:
            yield entries[0].partition("_{")[0], heading, WORDS.get(heading, ""), own
