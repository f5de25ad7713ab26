"""Every figure and table of a grid: which rule makes it, and where the page shows it.

The Snakefile and the page are made from these entries; tests compare README's list, `.gitignore`
and the notebooks with them. A new figure or table is one entry, and the cell that draws it.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

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
    with the same ``heading`` share a section of the page. The page shows what belongs to a task
    together, after all other sections.
    """

    stem: str
    rule: str
    heading: str
    kind: str = "figure"
    frozen: bool = False  # made only if the grid has a frozen regime
    promised: bool = True  # False: whether it can be made is known only when its rule runs
    patients: bool = False  # shows patients' images, so it is never committed


class Section(NamedTuple):
    """A section of the page."""

    key: str  # its id
    heading: str
    words: str  # the text under the heading
    shown: list[tuple[str, Entry]]  # the stems of its figures and tables, with their entries


OPENING = "The answer"  # the heading of the section that is open; all others are folded
ENTRIES = (  # in the order of the page
    Entry("answer", "compare", "The answer", "table"),
    Entry("recommendation", "compare", "The answer"),
    Entry("main_comparison", "compare", "The answer"),
    Entry("differences_regimes", "claims", "Frozen or fine-tuned?"),
    Entry("freezing", "compare", "What freezing costs"),
    Entry("best_arms", "compare", "Every arm beside the best", "table"),
    Entry("main_table", "compare", "In numbers", "table"),
    Entry("claims", "claims", "The paper's claims", "table"),
    Entry("critical_difference", "claims", "Ranks over tasks"),
    Entry("differences_{regime}", "claims", "Paired differences", promised=False),
    Entry("confounds", "claims", "Architecture or pretraining?", "table"),
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
    Entry("checklist", "checklist", "What a paper must report", "table"),
    Entry("full_table", "compare", "All metrics, all heads", "table"),
)
WORDS = {  # the text under a heading
    "In numbers": "Linear heads. Bold: the best value of a task, and values equivalent to it.",
    "The paper's claims": "Written down before any result; judged only if every arm was run.",
    "Every arm beside the best": "Each arm minus the best of the others, on the same patients.",
    "Architecture or pretraining?": "The parts of the difference between DINOv2 and CNNs.",
    "Does size pay?": "Vision transformers of different sizes with the same pretraining.",
    "How many labels does it take?": "A seed draws patients, and the weights of random controls.",
    "What does it cost?": "Results against time, parameters and memory, as means over tasks.",
    "Curves": "ROC and precision-recall curves, with 95 % bands over test patients.",
    "Thresholds": "Chosen on validation patients, and applied to test patients.",
    "Each class against the others": "AUROC, sensitivity and specificity on test patients.",
    "Subgroups and sites": "Results in groups of patients and at sites.",
    "Tests elsewhere": "The same models on another data set, on which none was trained.",
    "What they see": "Local features of several backbones on the same images.",
    "What a paper must report": "The items of CLAIM 2024 and TRIPOD+AI, with an answer to each.",
}
CAPTIONS = {  # stem of a figure -> its caption, and its alternative text
    "recommendation": (
        "Each arm minus the best other arm. The star is the recommended arm, the dashed line the "
        "margin.",
        "Forest plot with a panel for each task. It shows the difference between every arm and the "
        "best of the others, with its 95 % interval, and the margin.",
    ),
    "main_comparison": (
        "Thick bars: other test patients. Thin lines: also other training patients.",
        "Dot plot with a panel for each task. It shows the result of every backbone, frozen and "
        "fine-tuned, with two 95 % intervals.",
    ),
    "differences_regimes": (
        "Right of zero, training the backbone is better than freezing it. Grey: the margin.",
        "Forest plot. For each task and backbone it shows the trained arm minus the frozen arm, "
        "with 95 % intervals, and the equivalence margin.",
    ),
    "freezing": (
        "Each line is a backbone, frozen and fine-tuned on the same labels.",
        "Slope chart with a panel for each task. A line leads from the result of each backbone "
        "when frozen to its result when fine-tuned.",
    ),
    "critical_difference": (
        "A low rank is good. A bar joins backbones that cannot be told apart.",
        "Diagram of critical differences: the mean rank of each backbone over all tasks on a line, "
        "with bars over groups that cannot be told apart.",
    ),
    "differences_{regime}": (
        "Each row is a pair of backbones. Grey: the margin within which they are equivalent.",
        "Forest plot: the difference of each pair of backbones in one regime, with 95 % intervals, "
        "over the equivalence margin.",
    ),
    "size": (
        "Sizes of one architecture with the same pretraining are joined.",
        "Line chart with a panel for each task: the result against the number of parameters.",
    ),
    "label_efficiency": (
        "Each line is a backbone. Points: means over draws of the labelled patients.",
        "Line chart with a panel for each task: the result against the number of labelled "
        "patients.",
    ),
    "cost": (
        "The best arms are at the top left: their result is high and their cost is low.",
        "Scatter plot with a panel for each kind of cost. It shows the result of each backbone "
        "against its time, its parameters and its memory.",
    ),
    "curves_{task}": (
        "Bands: 95 % over test patients.",
        "ROC curves on the left and precision-recall curves on the right, a curve for each "
        "backbone, for {task}.",
    ),
    "confusion_{task}": (
        "Rows: the true class. Columns: the predicted class.",
        "Confusion matrices, one for each backbone, for {task}.",
    ),
    "decision_{task}": (
        "A model is useful where its curve is above both other curves: acting on all patients, and "
        "acting on none.",
        "Decision curves for {task}: the net benefit of each backbone against the threshold "
        "probability, beside acting on all patients and on none.",
    ),
    "reliability_{task}": (
        "On the diagonal, probabilities are as high as the share of correct predictions.",
        "Reliability diagrams for {task}: the accuracy against the confidence of each backbone, "
        "beside the diagonal.",
    ),
    "by_class_{task}": (
        "Each class against all others, with 95 % intervals.",
        "Dot plot for {task}: AUROC, sensitivity and specificity of each backbone in each class.",
    ),
    "wrong_by_all_{task}": (
        "Test images that every backbone gets wrong.",
        "A row of test images of {task} that every backbone gets wrong, each with its label and "
        "the predictions.",
    ),
    "wrong_{task}": (
        "For each class, the surest errors and the least sure images.",
        "A grid of test images of {task}: a row for each class, with the predicted classes and "
        "their probabilities below each image.",
    ),
    "subgroups_{task}": (
        "Groups with few patients have wide intervals.",
        "Forest plot for {task}: the result of each backbone in groups of patients, such as those "
        "of an age or a site, with 95 % intervals.",
    ),
    "external_{task}": (
        "The same models on their own test patients and on another data set.",
        "Dot plot for models of {task}: the result of every arm inside and on another data set, "
        "with 95 % intervals.",
    ),
    "shift_{task}": (
        "The images that are easiest to tell apart.",
        "Images of {task}, and images of another data set. A classifier recognises these images "
        "most surely as images of their own data set.",
    ),
    "embeddings_{task}": (
        "Each point is an image, by its embedding on two principal components.",
        "Scatter plots of the embeddings of {task}, with a panel for each backbone: coloured by "
        "label, by patient and, where it is known, by site.",
    ),
    "seen_{task}": (
        "Equal colours in a map: local features that are alike.",
        "A grid of images of {task}. Below each image are coloured maps of the local features of "
        "each backbone.",
    ),
    "flow_{task}": (
        "The images that were found, the excluded ones, and the patients of each side.",
        "Flow chart for {task}: images found, images excluded with the reason, and patients and "
        "images of each side.",
    ),
    "passport_{task}": (
        "Patients and images of each side of the split.",
        "Split passport of {task}: tables and bars of patients, images, classes, age, sex and "
        "site on each side of the split, and of duplicates.",
    ),
}


def files(rule: str, frozen: bool) -> list[str]:
    """The names of the files that a rule must write. ``{task}`` is not filled in."""
    own = [e for e in ENTRIES if e.rule == rule and e.promised and (frozen or not e.frozen)]
    return [f"{entry.stem}.{kind}" for entry in own for kind in FILES[entry.kind]]


def sections(stems: Collection[str], task: str = "") -> Iterator[Section]:
    """The sections that these figures and tables fill, in the order of the page.

    Without a ``task`` these are the sections of what belongs to no task, otherwise those of what
    belongs to this one.
    """
    left = {stem for entry in ENTRIES for stem in _filled(entry, stems, task)}
    for heading in dict.fromkeys(entry.heading for entry in ENTRIES):
        shown = []
        for entry in (entry for entry in ENTRIES if entry.heading == heading):
            own = [stem for stem in _filled(entry, stems, task) if stem in left]
            left -= set(own)
            shown += [(stem, entry) for stem in own]
        if shown:
            key = shown[0][1].stem.partition("_{")[0]
            yield Section(f"{key}-{task}" if task else key, heading, WORDS.get(heading, ""), shown)


def _filled(entry: Entry, stems: Collection[str], task: str) -> list[str]:
    """The stems that are of this entry, and of this task if the entry belongs to tasks."""
    if ("{task}" in entry.stem) != bool(task):
        return []
    pattern = re.sub(r"\{(\w+)\}", lambda field: task if field[1] == "task" else r"\w+", entry.stem)
    return sorted(stem for stem in stems if re.fullmatch(pattern, stem))
