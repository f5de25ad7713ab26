"""The grid as a DAG of files: one rule per notebook, each job one papermill run.

    snakemake --cores all --config grid=demo

Settings that do not change results (device, folders of data and weights) are not in `params`:
changing them runs nothing again. Only medlib.grid.address knows where files lie.

Snakemake runs a job whose output is missing. Every input is `ancient`: times decide nothing.
medlib.grid.plan compares contents, and hands over with --forcerun what has to run again.
"""

import functools
import gc
import json
import os
from collections import defaultdict

import pandas as pd

from medlib.core import backbones
from medlib.core import weights as weight_files
from medlib.core.settings import REGIMES, TRAINED
from medlib.data import cards
from medlib.grid import address, gridfile, notebooks, page, states
from medlib.show import names, registry

GRID = config.get("grid", "demo")
RESULTS = f"results/{GRID}"
FIGURES = f"figures/{GRID}"
grid = gridfile.read(f"grids/{GRID}.yaml")
TASKS, PREPARED = grid["tasks"], gridfile.prepared(grid)
PARTIAL = config.get("partial", False)  # draw only the runs that are there
BACKBONES = sorted(gridfile.all_backbones(grid))
# A notebook names folders relative to its own.
SHARED = {"data": grid["data"], "results": f"../{RESULTS}"}
COMPARED = {"results": SHARED["results"], "grid_file": f"../grids/{GRID}.yaml"} | grid["collect"]
CAPTION = states.caption(grid, RESULTS) if PARTIAL else grid.get("caption", "")
PRIMARY = {"primary": gridfile.primary(grid)}
DRAWN = {"figures": f"../{FIGURES}", "caption": CAPTION}
# Names, families and order of backbones in figures: if one changes, all figures are drawn again.
PRETRAINING = [backbones.get(name).pretraining for name in BACKBONES]
IN_ORDER = names.in_order(pd.DataFrame({"backbone": BACKBONES, "pretraining": PRETRAINING}))
FAMILIES = [names.family(*pair) for pair in zip(BACKBONES, PRETRAINING)]
PRINTED = repr([list(IN_ORDER["name"]), FAMILIES, names.families()])
RUNS = states.done(grid, RESULTS) if PARTIAL else gridfile.runs(grid)  # that are drawn
LOOKED_AT = next(regime for regime in REGIMES if grid[regime])  # by notebooks 09, 12 and 13
LOOKED_AT_TASKS = list(dict.fromkeys(run.task for run in RUNS if run.regime == LOOKED_AT))
EXTERNAL = grid.get("external", {})  # task -> the data sets on which notebook 11 tests its models
TESTED_ELSEWHERE = [task for task in EXTERNAL if any(run.task == task for run in RUNS)]
# What a job is made from. It records the content of its inputs when it begins.
MADE_FROM = (
    "--attempt {resources.attempt} --settings {params:q} --expect {output:q} --inputs {input:q}"
)
RUN = (
    "python -m medlib.grid.notebooks {input.notebook:q} {log.notebook:q} --gpu {resources.gpu} "
    f"--parameters {{params.json:q}} {MADE_FROM}"
)


def needs(minutes, gpu=0):
    """What a job declares: MB and minutes (more of both at a second attempt), and GPUs."""
    return {
        "mem_mb": lambda wildcards, attempt: 4000 * attempt,
        "runtime": lambda wildcards, attempt: minutes * attempt,
        "gpu": gpu,
        "attempt": lambda wildcards, attempt: attempt,
    }


def code(notebook):
    """The modules that a notebook uses: if their code changes, the notebook's jobs run again.

    These are left out:

    - before notebook 06, modules that draw: new figures are no reason to train again;
    - modules that run jobs, and modules that fetch weights: a job depends on the weights file;
    - the table of backbones: a job depends on its own row only;
    - before notebook 06, the module that describes a saved model: no prediction depends on it.
    """
    shows = int(notebook[:2]) > 5
    saving = set() if shows else {notebooks.MEDLIB / "grid" / "models.py"}
    modules = notebooks.sources(f"notebooks/{notebook}.ipynb", saving)[1:]
    names = [path.relative_to(notebooks.MEDLIB) for path in modules]
    left_out = {f"grid/{name}.py" for name in ("notebooks", "jobs", "made", "kinds")}
    out = {"zoo"} if shows else {"zoo", "show"}
    names = [name for name in names if name.parts[0] not in out]
    return [f"medlib/{name}" for name in names if str(name) not in left_out]


def made_by(notebook):
    """The inputs that are code: the notebook and the modules that it uses."""
    return {"notebook": ancient(f"notebooks/{notebook}.ipynb"), "code": ancient(code(notebook))}


def card_files(wildcards):
    """The task's card and, for real data, the list of its samples."""
    return [
        os.path.relpath(path)
        for path in cards.files(wildcards.task)
        if path.suffix == ".yaml" or grid["data"] != "phantoms"
    ]


def described(task):
    """The files that describe a task's patients: cards and manifest. A partial grid may lack it."""
    files = [os.path.relpath(path) for path in cards.files(task) if path.suffix == ".yaml"]
    return files + [manifest(task)] * (not PARTIAL or os.path.exists(manifest(task)))


def parameters(shared=SHARED, **values):
    """JSON for a notebook. `params` holds it as a function: Snakemake reads a brace as a wildcard."""
    return json.dumps(shared | values, sort_keys=True)


def settings(regime, *dropped):
    """What the grid file states for a regime, without what a rule passes in another form."""
    return {name: value for name, value in grid[regime].items() if name not in dropped}


def size_of(regime, backbone):
    return gridfile.image_size(grid, regime, backbone)


@functools.cache
def packs(task, *sizes):
    """The packed images of a task, in both interpolations: a new backbone needs no new pack."""
    return [
        str(address.pack(RESULTS, task, size, interpolation) / "meta.json")
        for size in sizes
        for interpolation in ("bilinear", "bicubic")
    ]


def manifest(task="{task}"):
    return str(address.manifest(RESULTS, task))


def features(task="{task}", backbone="{backbone}", seed="{seed}"):
    """The file that says that a task's embeddings are complete."""
    return str(address.features(RESULTS, task, backbone, seed) / "meta.json")


def embedded(task, backbone):
    """The file of :func:`features` for every draw of a backbone's weights."""
    return [features(task, backbone, seed) for seed in gridfile.weight_seeds(grid, backbone)]


def run_of(wildcards):
    """The address of the run that a fine-tuning job makes."""
    return address.Address.parse(address.RUN.format(**dict(wildcards.items())))


def trained_on(wildcards):
    """The packed images that a fine-tuning job reads."""
    return packs(wildcards.task, size_of(run_of(wildcards).regime, wildcards.backbone))


def training(run):
    asked = {name: value for name, value in vars(run).items() if name != "head"}
    own = settings(run.regime, "backbones", "image_size", "label_fraction", "seeds")
    size = size_of(run.regime, run.backbone)
    return parameters(**asked, **own, **gridfile.saved_models(grid, run.task), image_size=size, again=True)


def row(wildcards):
    """The row of the backbone: if it changes, the job runs again."""
    return repr(backbones.get(wildcards.backbone))


def weights(wildcards):
    """The weights file, where there is one: if it changes, the job runs again."""
    backbone = backbones.get(wildcards.backbone)
    file = None if backbone.pretraining == "random" else weight_files.weights_file(backbone)
    return [str(file)] if file else []


onstart:
    gc.enable()  # medlib.grid.study turns it off while the graph is built


wildcard_constraints:
    task=r"[^/]+",
    backbone=r"[^/]+",
    seed=r"\d+",


SUMMARIES = [f"{RESULTS}/{name}.csv" for name in ("summary", "summary_over_seeds", "costs")]


def shown(rule):
    """The files of the figures and tables of a rule; {task} is in the name if each task has one."""
    return [f"{FIGURES}/{name}" for name in registry.files(rule, frozen=bool(grid["frozen"]))]


def reported(rule):
    """The files of :func:`shown` as outputs. Figures go into Snakemake's report as well."""
    return [name if not name.endswith(".png") else report(name, category=rule) for name in shown(rule)]


def drawn(*rules):
    """The files of the figures and tables of these rules, of all tasks."""
    files, tasks_of = [], {"prepare": PREPARED, "elsewhere": TESTED_ELSEWHERE}
    for rule in rules:
        tasks = tasks_of.get(rule, LOOKED_AT_TASKS)
        for name in shown(rule):
            files += [name.format(task=task) for task in tasks] if "{task}" in name else [name]
    return list(dict.fromkeys(files))


# The files that say that the runs of a backbone on a task are complete.
FINISHED = defaultdict(dict)  # the files are its keys: one job makes all probes of a backbone
for _run in RUNS:
    FINISHED[_run.task, _run.backbone][str(_run.promised(RESULTS))] = True


def finished(task):
    """The files that say that all runs of a task are complete."""
    return [file for (of_task, _), files in FINISHED.items() if of_task == task for file in files]


def tested_on(task):
    """What notebook 11 reads of the data sets on which a task's models are tested."""
    names = [task, *EXTERNAL[task]]
    sizes = gridfile.image_sizes(grid)
    return [file for name in names for file in (manifest(name), *packs(name, *sizes))]


def summarised(tasks):
    """The files that keep the intervals of each backbone on these tasks."""
    cells = [(task, backbone) for task in tasks for backbone in BACKBONES]
    return [str(address.intervals(RESULTS, *cell)) for cell in cells if FINISHED[cell]]


# The page of an incomplete grid has another name, so that nobody takes the grid for complete.
REPORT = f"{FIGURES}/{page.page_name(grid, RESULTS) if PARTIAL else page.PAGE}"


def everything():
    """Every file of a complete grid.

    All are named here, not only the page at the end: if a file exists, Snakemake does not check
    that the files from which it was made exist, too.
    """
    if PARTIAL:
        return [REPORT]
    cells = [(task, backbone) for task in TASKS for backbone in BACKBONES]
    return [
        *(manifest(task) for task in PREPARED),
        *(file for task in PREPARED for file in packs(task, *gridfile.image_sizes(grid))),
        *(file for task, backbone in cells if backbone in grid["frozen"].get("backbones", ())
          for file in embedded(task, backbone)),
        *(file for cell in cells for file in FINISHED[cell]),
        *summarised(TASKS),
        *SUMMARIES,
        f"{RESULTS}/differences.csv",
        *drawn(*registry.NOTEBOOKS, *registry.MODULES),
        REPORT,
    ]


rule all:
    input:
        everything(),


rule prepare:
    input:
        **made_by("01_prepare_data"),
        card=ancient(card_files),
    output:
        manifest(),
        manifest().replace(".csv", ".yaml"),
        str(address.seeds(RESULTS, "{task}")),
        packs("{task}", *gridfile.image_sizes(grid)),
        shown("prepare"),
    log:
        notebook=str(address.images(RESULTS, "{task}") / "01_prepare_data.ipynb"),
    params:
        json=lambda wildcards: parameters(
            task=wildcards.task,
            figures=f"../{FIGURES}",
            image_sizes=gridfile.image_sizes(grid),
            **grid["prepare"],
        ),
    resources:
        **needs(120),
    shell:
        RUN


rule extract:
    input:
        ancient(lambda wildcards: packs(wildcards.task, size_of("frozen", wildcards.backbone))),
        ancient(weights),
        **made_by("02_extract_features"),
        manifest=ancient(manifest()),
    output:
        features(),
    log:
        notebook=features().replace("meta.json", "02_extract_features.ipynb"),
    params:
        json=lambda wildcards: parameters(
            task=wildcards.task,
            backbone=wildcards.backbone,
            image_size=size_of("frozen", wildcards.backbone),
            seed=int(wildcards.seed),
        ),
        row=row,
    resources:
        **needs(240, gpu=1),
    shell:
        RUN


rule probe:
    input:
        ancient(lambda wildcards: embedded(wildcards.task, wildcards.backbone)),
        **made_by("03_probe_features"),
    output:
        str(address.probes(RESULTS, "{task}", "{backbone}")),
    log:
        notebook=str(address.cell(RESULTS, "{task}", "{backbone}") / "03_probe_features.ipynb"),
    params:
        json=lambda wildcards: parameters(
            task=wildcards.task,
            backbone=wildcards.backbone,
            seeds=gridfile.seeds(grid, "frozen"),
            label_fractions=gridfile.label_fractions(grid, wildcards.task),
            redrawn_fractions=gridfile.redrawn_fractions(grid, wildcards.task),
            image_size=size_of("frozen", wildcards.backbone),
            again=True,
            **settings("frozen", "backbones", "image_size", "label_fractions", "seeds"),
            **gridfile.saved_models(grid, wildcards.task),
        ),
    resources:
        **needs(240),
    shell:
        RUN


rule finetune:
    input:
        ancient(trained_on),
        ancient(weights),
        **made_by("04_fine_tune"),
        manifest=ancient(manifest()),
    output:
        f"{RESULTS}/{address.RUN}/run.json",
    wildcard_constraints:
        arm=f"({'|'.join(TRAINED)})(-[^/]+)?",
    log:
        notebook=f"{RESULTS}/{address.RUN}/04_fine_tune.ipynb",
    params:
        json=lambda wildcards: training(run_of(wildcards)),
        row=row,
    resources:
        **needs(1440, gpu=1),
    shell:
        RUN


# Runs as soon as a backbone's runs on a task are complete, while others still train. Rows that are
# still valid are read from the file: it is updated, not made anew.
rule summarise:
    input:
        ancient(lambda wildcards: list(FINISHED[wildcards.task, wildcards.backbone])),
        code=ancient(code("05_collect_results")),
    output:
        update(str(address.intervals(RESULTS, "{task}", "{backbone}"))),
    params:
        grid=f"grids/{GRID}.yaml",
        settings=lambda wildcards: parameters(grid["collect"]),
    resources:
        **needs(120),
    shell:
        "TQDM_DISABLE=1 python -m medlib.grid.summarise {params.grid:q} {RESULTS:q} "
        "{wildcards.task:q} {wildcards.backbone:q} " + MADE_FROM


rule collect:
    input:
        ancient(summarised(TASKS)),
        **made_by("05_collect_results"),
    output:
        SUMMARIES,
    log:
        notebook=f"{RESULTS}/05_collect_results.ipynb",
    params:
        json=lambda wildcards: parameters(COMPARED),
    resources:
        **needs(60),
    shell:
        RUN


rule compare:
    input:
        ancient(f"{RESULTS}/summary_over_seeds.csv"),
        **made_by("06_compare_backbones"),
    output:
        reported("compare"),
    log:
        notebook=f"{RESULTS}/06_compare_backbones.ipynb",
    params:
        printed=PRINTED,
        json=lambda wildcards: parameters(COMPARED | DRAWN),
    resources:
        **needs(60),
    shell:
        RUN


rule costs:
    input:
        ancient([f"{RESULTS}/summary.csv", f"{RESULTS}/costs.csv"]),
        **made_by("07_weigh_costs"),
    output:
        reported("costs"),
    log:
        notebook=f"{RESULTS}/07_weigh_costs.ipynb",
    params:
        printed=PRINTED,
        json=lambda wildcards: parameters(DRAWN, results=SHARED["results"]),
    resources:
        **needs(60),
    shell:
        RUN


rule claims:
    input:
        ancient([f"{RESULTS}/summary.csv", f"{RESULTS}/costs.csv"]),
        **made_by("08_test_claims"),
    output:
        reported("claims"),
        f"{RESULTS}/differences.csv",
        f"{RESULTS}/claims_sensitivity.csv",
    log:
        notebook=f"{RESULTS}/08_test_claims.ipynb",
    params:
        printed=PRINTED,
        json=lambda wildcards: parameters(COMPARED | DRAWN | PRIMARY),
    resources:
        **needs(60),
    shell:
        RUN


rule look:
    input:
        ancient(lambda wildcards: summarised([wildcards.task])),
        **made_by("09_look_closer"),
    output:
        reported("look"),
    log:
        notebook=f"{RESULTS}/09_look_closer_{{task}}.ipynb",
    params:
        printed=PRINTED,
        json=lambda wildcards: parameters(
            COMPARED | DRAWN, task=wildcards.task, regime=LOOKED_AT
        ),
    resources:
        **needs(60),
    shell:
        RUN


rule operate:
    input:
        ancient(lambda wildcards: summarised([wildcards.task])),
        **made_by("12_choose_thresholds"),
    output:
        reported("operate"),
    log:
        notebook=f"{RESULTS}/12_choose_thresholds_{{task}}.ipynb",
    params:
        printed=PRINTED,
        json=lambda wildcards: parameters(
            COMPARED | DRAWN | gridfile.thresholds(grid, wildcards.task),
            task=wildcards.task,
            regime=LOOKED_AT,
        ),
    resources:
        **needs(60),
    shell:
        RUN


rule subgroups:
    input:
        ancient(lambda wildcards: summarised([wildcards.task])),
        **made_by("13_compare_groups"),
        manifest=ancient(manifest()),
        card=ancient(manifest().replace(".csv", ".yaml")),
    output:
        reported("subgroups"),
    log:
        notebook=f"{RESULTS}/13_compare_groups_{{task}}.ipynb",
    params:
        printed=PRINTED,
        json=lambda wildcards: parameters(
            COMPARED | DRAWN | grid["subgroups"], task=wildcards.task, regime=LOOKED_AT
        ),
    resources:
        **needs(60),
    shell:
        RUN


rule elsewhere:
    input:
        ancient(lambda wildcards: finished(wildcards.task)),
        ancient(lambda wildcards: tested_on(wildcards.task)),
        **made_by("11_test_elsewhere"),
    output:
        reported("elsewhere"),
    log:
        notebook=f"{RESULTS}/11_test_elsewhere_{{task}}.ipynb",
    params:
        printed=PRINTED,
        json=lambda wildcards: parameters(
            SHARED | DRAWN | gridfile.elsewhere(grid, wildcards.task),
            task=wildcards.task,
            grid_file=COMPARED["grid_file"],
        ),
    resources:
        **needs(240, gpu=1),
    shell:
        RUN


# What a paper must report: from the cards, the manifests, the records, and the figures so far.
rule checklist:
    input:
        ancient(drawn(*registry.DRAWING)),
        ancient(lambda wildcards: [file for task in TASKS for file in described(task)]),
        code=ancient(
            [
                f"medlib/{name}"
                for name in (
                    "show/checklist.py",
                    "show/checklist.yaml",
                    "show/tables.py",
                    "grid/checklist.py",
                    "grid/facts.py",
                    "data/flow.py",
                )
            ]
        ),
    output:
        shown("checklist"),
    log:
        f"{RESULTS}/checklist.log",
    params:
        grid=f"grids/{GRID}.yaml",
        words=lambda wildcards: parameters({"grid": grid, "caption": CAPTION}),
    resources:
        **needs(60),
    shell:
        "python -m medlib.grid.checklist {params.grid:q} {RESULTS:q} {FIGURES:q} " + MADE_FROM


rule write_report:
    input:
        ancient(drawn(*registry.DRAWING, *registry.MODULES)),
        code=ancient(
            [
                f"medlib/{name}"
                for name in (
                    "show/report.py",
                    "show/registry.py",
                    "show/page.html",
                    "show/tables.py",
                    "grid/page.py",
                )
            ]
        ),
    output:
        REPORT,
    log:
        f"{RESULTS}/report.log",
    params:
        grid=f"grids/{GRID}.yaml",
        words=lambda wildcards: repr([grid["title"], grid.get("caption", "")]),
    resources:
        **needs(60),
    shell:
        "python -m medlib.grid.page {params.grid:q} {RESULTS:q} {FIGURES:q} " + MADE_FROM
