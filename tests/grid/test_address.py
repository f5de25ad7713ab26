"""A run's address writes the name of its folder, and reads it."""

import itertools
import random
import re

import pytest

from medlib.core import settings
from medlib.grid import address, notebooks
from medlib.grid.address import Address


@pytest.mark.parametrize(
    "coordinates, name",
    [
        ({"regime": "frozen"}, "frozen-linear/seed0"),
        ({"regime": "frozen", "head": "knn", "seed": 3}, "frozen-knn/seed3"),
        (
            {"regime": "frozen", "head": "mlp", "label_fraction": 0.1},
            "frozen-mlp-fraction0.1/seed0",
        ),
        ({"regime": "finetuned", "head": "mlp", "seed": 1}, "finetuned/seed1"),
        ({"regime": "finetuned", "label_fraction": 0.05}, "finetuned-fraction0.05/seed0"),
        ({"regime": "finetuned", "label_fraction": 1}, "finetuned/seed0"),
        ({"regime": "lora", "label_fraction": 0.1, "seed": 2}, "lora-fraction0.1/seed2"),
        ({"regime": "lora"}, "lora/seed0"),
        ({"regime": "lora", "label_fraction": 1e-5}, "lora-fraction1e-05/seed0"),
    ],
)
def test_a_run_folder_is_named_by_its_coordinates(coordinates, name):
    run = Address("fundus", "dinov2_small", **coordinates)
    folder = run.folder("results/demo")
    assert folder.as_posix() == f"results/demo/runs/fundus/dinov2_small/{name}"
    assert Address.parse(folder) == run


def test_any_address_is_read_from_its_folder():
    chance = random.Random(0)
    names = ["a", "0.1+2-b", "frozen-knn", "seed3", "runs", "x-fraction0.5"]
    fractions = [1.0, 0.1, 1 / 3, 1e-7, *(chance.random() for _ in range(20))]
    arms = itertools.product(settings.REGIMES, settings.HEADS, fractions)
    for regime, head, fraction in arms:
        task, backbone = chance.choices(names, k=2)
        run = Address(task, backbone, regime, head, fraction, chance.randrange(10**9))
        for results in ("results/demo", "/runs/a/b/frozen-knn/seed1", "."):
            assert Address.parse(run.folder(results)) == run
            assert Address.parse(str(run.folder(results))) == run


@pytest.mark.parametrize(
    "path",
    [
        "",
        "results/demo",
        "results/demo/runs/fundus/net/frozen-linear",
        "results/demo/runs/fundus/net/frozen-linear/seed0/run.json",
        "results/demo/runs/fundus/net/frozen/seed0",
        "results/demo/runs/fundus/net/frozen-svm/seed0",
        "results/demo/runs/fundus/net/finetuned-knn/seed0",
        "results/demo/runs/fundus/net/forzen-knn/seed0",
        "results/demo/runs/fundus/net/finetuned-fraction1/seed0",
        "results/demo/runs/fundus/net/finetuned-fraction0.10/seed0",
        "results/demo/runs/fundus/net/finetuned-fractionhalf/seed0",
        "results/demo/runs/fundus/net/finetuned-fraction2/seed0",
        "results/demo/runs/fundus/net/finetuned-fractionnan/seed0",
        "results/demo/runs/fundus/net/finetuned/seed00",
        "results/demo/runs/fundus/net/finetuned/seed-1",
        "results/demo/runs/fundus/net/finetuned/seedx",
    ],
)
def test_what_is_no_address_is_refused_in_words(path):
    with pytest.raises(ValueError, match="is not the folder of a run. It must end in runs/{task}"):
        Address.parse(path)


def test_an_unknown_regime_is_refused():
    with pytest.raises(ValueError, match=r"'forzen'\. Did you mean 'frozen'\?.*frozen, finetuned"):
        Address("fundus", "dinov2_small", "forzen")


@pytest.mark.parametrize(
    "changes", [{"task": "a/b"}, {"backbone": ".."}, {"label_fraction": 0}, {"head": "lineal"}]
)
def test_what_cannot_be_an_address_is_refused(changes):
    with pytest.raises(ValueError, match=re.escape(str(*changes.values()))):
        Address(**{"task": "a", "backbone": "b", "regime": "frozen"} | changes)


def test_other_places_are_those_of_the_design():
    places = [
        address.manifest("r", "fundus"),
        address.images("r", "fundus"),
        address.pack("r", "fundus", 224, "bicubic"),
        address.features("r", "fundus", "dinov2_small"),
        address.cell("r", "fundus", "dinov2_small"),
        address.probes("r", "fundus", "dinov2_small"),
        address.intervals("r", "fundus", "dinov2_small"),
    ]
    assert [place.as_posix() for place in places] == [
        "r/manifests/fundus.csv",
        "r/images/fundus",
        "r/images/fundus/224-bicubic",
        "r/features/fundus/dinov2_small/seed0",
        "r/runs/fundus/dinov2_small",
        "r/runs/fundus/dinov2_small/frozen.csv",
        "r/runs/fundus/dinov2_small/intervals.json",
    ]


def test_a_file_belongs_to_a_task_and_a_backbone():
    run = Address("fundus", "net", "lora")
    for place in (run.folder(""), address.features("", "fundus", "net")):
        assert address.belongs_to(place / "a.json") == ("fundus", "net")
    assert address.belongs_to(address.images("", "fundus") / "a.json") == ("fundus", None)
    assert address.belongs_to("05_collect_results.ipynb") == (None, None)


def test_probes_without_chance_run_for_the_first_seed_only():
    cell = "fundus", "net"
    runs = address.frozen_runs(*cell, ["linear", "knn", "mlp"], iter([1, 0.1]), iter([4, 5]))
    probes = {(run.head, run.label_fraction, run.seed) for run in runs}
    assert len(runs) == len(probes) == 10
    assert len(address.frozen_runs(*cell, ["linear", "mlp"], [1], [4, 5], always_drawn=True)) == 4
    expected = {(head, 1, 4) for head in ("linear", "knn", "mlp")} | {("mlp", 1, 5)}
    expected |= {(head, 0.1, seed) for head in ("linear", "knn", "mlp") for seed in (4, 5)}
    assert probes == expected


def test_nobody_else_names_a_folder(repository):
    """Not the Snakefile, not the notebooks, not medlib, not the benchmarks."""
    code = {"Snakefile": (repository / "Snakefile").read_text("utf-8")}
    for path in (repository / "notebooks").glob("*.ipynb"):
        code[path.name] = notebooks.code(path)
    for folder in ("medlib", "benchmarks"):
        for path in (repository / folder).rglob("*.py"):
            code[str(path.relative_to(repository))] = path.read_text("utf-8")
    del code["medlib/grid/address.py"]
    spelt = re.compile(r"-fraction|frozen\.csv|intervals\.json|/seed|seed\{|[\"'/]runs/")
    assert {name: spelt.findall(text) for name, text in code.items() if spelt.search(text)} == {}
