"""The grid as a DAG of files: one rule per notebook, each job one papermill run.

    snakemake --cores all --config grid=demo

Knobs that do not change results (device, folders of data and weights) are kept out of `params`, so
that changing them runs nothing again.
"""

import json
import os

from medlib import artifacts, backbones, cards, execute
from medlib import grid as grids

GRID = config.get("grid", "demo")
RESULTS = f"results/{GRID}"
FIGURES = f"figures/{GRID}"
grid = grids.read(f"grids/{GRID}.yaml")
TASKS, SEEDS = grid["tasks"], grid["seeds"]
# A notebook names folders relative to its own.
SHARED = {"data": grid["data"], "results": f"../{RESULTS}"}
RUN = (
    "python -m medlib.execute {input.notebook:q} {log.notebook:q} "
    "--parameters {params.json:q} --expect {output:q}"
)


def code(notebook):
    """The modules that a notebook uses. How things are drawn is no reason to train again."""
    modules = execute.sources(f"notebooks/{notebook}.ipynb")[1:]
    drawing = () if notebook == "06_compare_backbones" else ("plots", "passport")
    return [os.path.relpath(path) for path in modules if path.stem not in drawing]


def parameters(shared=SHARED, **values):
    return json.dumps(shared | values, sort_keys=True)


def settings(regime, *dropped):
    return {name: value for name, value in grid[regime].items() if name not in dropped}


def packs(sizes):
    """The packed images of a task, in both interpolations: a new backbone needs no new pack."""
    return [
        str(artifacts.images_folder(RESULTS, "{task}", size, interpolation) / "meta.json")
        for size in sizes
        for interpolation in ("bilinear", "bicubic")
    ]


def weights(wildcards):
    """The weights file, where there is one: other weights are other results."""
    backbone = backbones.get(wildcards.backbone)
    file = None if backbone.pretraining == "random" else backbones.weights_file(backbone)
    return [str(file)] if file else []


onstart:
    grids.check_inputs(grid)


wildcard_constraints:
    task=r"[^/]+",
    backbone=r"[^/]+",
    seed=r"\d+",


rule all:
    input:
        f"{FIGURES}/main_comparison.png",
        f"{FIGURES}/main_table.csv",


rule prepare:
    input:
        notebook="notebooks/01_prepare_data.ipynb",
        code=code("01_prepare_data"),
        card=lambda wildcards: [
            os.path.relpath(path)
            for path in cards.files(wildcards.task)
            if path.suffix == ".yaml" or grid["data"] != "phantoms"
        ],
    output:
        multiext(f"{RESULTS}/manifests/{{task}}", ".csv", ".yaml"),
        packs(grids.image_sizes(grid)),
        multiext(f"{FIGURES}/passport_{{task}}", ".png", ".pdf", ".svg", ".csv"),
    log:
        notebook=f"{RESULTS}/images/{{task}}/01_prepare_data.ipynb",
    params:
        json=lambda wildcards: parameters(
            task=wildcards.task,
            figures=f"../{FIGURES}",
            image_sizes=grids.image_sizes(grid),
            **grid["prepare"],
        ),
    shell:
        RUN


rule extract:
    input:
        packs([grid["frozen"].get("image_size")]),
        weights,
        notebook="notebooks/02_extract_features.ipynb",
        code=code("02_extract_features"),
        manifest=f"{RESULTS}/manifests/{{task}}.csv",
    output:
        f"{RESULTS}/features/{{task}}/{{backbone}}/meta.json",
    log:
        notebook=f"{RESULTS}/features/{{task}}/{{backbone}}/02_extract_features.ipynb",
    params:
        json=lambda wildcards: parameters(
            task=wildcards.task,
            backbone=wildcards.backbone,
            image_size=grid["frozen"]["image_size"],
        ),
    shell:
        RUN


rule probe:
    input:
        f"{RESULTS}/features/{{task}}/{{backbone}}/meta.json",
        notebook="notebooks/03_probe_features.ipynb",
        code=code("03_probe_features"),
    output:
        f"{RESULTS}/runs/{{task}}/{{backbone}}/frozen.csv",
    log:
        notebook=f"{RESULTS}/runs/{{task}}/{{backbone}}/03_probe_features.ipynb",
    params:
        json=lambda wildcards: parameters(
            task=wildcards.task,
            backbone=wildcards.backbone,
            seeds=SEEDS,
            label_fractions=grids.label_fractions(grid, wildcards.task),
            **settings("frozen", "backbones", "label_fractions"),
        ),
    shell:
        RUN


rule finetune:
    input:
        lambda wildcards: expand(packs([grid[wildcards.regime]["image_size"]]), **wildcards),
        weights,
        notebook="notebooks/04_fine_tune.ipynb",
        code=code("04_fine_tune"),
        manifest=f"{RESULTS}/manifests/{{task}}.csv",
    output:
        f"{RESULTS}/runs/{{task}}/{{backbone}}/{{regime}}{{labels}}/seed{{seed}}/run.json",
    wildcard_constraints:
        regime="|".join(artifacts.TRAINED),
        labels="(-fraction[^/]+)?",
    log:
        notebook=f"{RESULTS}/runs/{{task}}/{{backbone}}/{{regime}}{{labels}}/seed{{seed}}/"
        "04_fine_tune.ipynb",
    params:
        json=lambda wildcards: parameters(
            task=wildcards.task,
            backbone=wildcards.backbone,
            seed=int(wildcards.seed),
            regime=wildcards.regime,
            label_fraction=grids.label_fraction(grid, wildcards.task, wildcards.regime),
            **settings(wildcards.regime, "backbones", "label_fraction"),
        ),
    shell:
        RUN


rule collect:
    input:
        [
            f"{RESULTS}/runs/{task}/{backbone}/frozen.csv"
            for task in TASKS
            for backbone in grid["frozen"].get("backbones", ())
        ],
        [
            str(folder / "run.json")
            for task in TASKS
            for folder in grids.fine_tuned(grid, RESULTS, task)
        ],
        notebook="notebooks/05_collect_results.ipynb",
        code=code("05_collect_results"),
    output:
        f"{RESULTS}/summary.csv",
        f"{RESULTS}/summary_over_seeds.csv",
    log:
        notebook=f"{RESULTS}/05_collect_results.ipynb",
    params:
        json=parameters(
            {"results": SHARED["results"]}, grid_file=f"../grids/{GRID}.yaml", **grid["collect"]
        ),
    shell:
        RUN


rule compare:
    input:
        f"{RESULTS}/summary_over_seeds.csv",
        notebook="notebooks/06_compare_backbones.ipynb",
        code=code("06_compare_backbones"),
    output:
        multiext(f"{FIGURES}/main_comparison", ".png", ".pdf", ".svg", ".csv"),
        multiext(f"{FIGURES}/main_table", ".csv", ".md", ".tex"),
        multiext(f"{FIGURES}/full_table", ".csv", ".md", ".tex"),
    log:
        notebook=f"{RESULTS}/06_compare_backbones.ipynb",
    params:
        json=parameters(
            {"results": SHARED["results"]},
            figures=f"../{FIGURES}",
            caption=grid.get("caption", ""),
        ),
    shell:
        RUN
