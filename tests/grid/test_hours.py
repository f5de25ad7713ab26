"""Estimates of hours: counts by hand, rates that were measured, and grids that have been run."""

from types import SimpleNamespace

import pytest
import torch

from medlib.core import backbones
from medlib.grid import address, gridfile, hours

# Two cores as those that ran the pocket grid: there, with other work beside it, one embedded 11.1
# images a second with ResNet50 (benchmarks/README.md).
MACHINE = hours.Machine(2, 11.1 * 8.17e9 / 0.83)
MINUTE, HOUR = 60, 3600


def jobs_of(grid, results):
    """The long jobs of a grid, as its plan names them."""
    runs, every = gridfile.runs(grid), {}
    for task in grid["tasks"]:
        size = gridfile.image_sizes(grid)[0]
        made = address.manifest(results, task), address.pack(results, task, size, "bicubic")
        every["prepare", task] = made
    for run in runs:
        every[run.promised(results)] = [run.promised(results)]
        if run.regime == "frozen":
            for seed in gridfile.weight_seeds(grid, run.backbone):
                folder = address.features(results, run.task, run.backbone, seed)
                every[folder] = [folder / "meta.json"]
        cell = address.intervals(results, run.task, run.backbone)
        every[cell] = [cell]

    def rule(key, outputs):
        names = {"frozen.csv": "probe", "meta.json": "extract", "run.json": "finetune"}
        return "prepare" if key[0] == "prepare" else names.get(outputs[0].name, "summarise")

    return [
        SimpleNamespace(
            rule=rule(key if isinstance(key, tuple) else ("",), outputs),
            outputs=[str(path) for path in outputs],
        )
        for key, outputs in every.items()
    ]


def estimated(repository, name, machine=MACHINE, results="none"):
    grid = gridfile.read(repository / "grids" / f"{name}.yaml")
    return hours.estimate(grid, results, jobs_of(grid, results), machine)


@pytest.mark.parametrize(
    ("name", "row"),
    [("vgg16-random", 0), ("resnet50-random", 1), ("mobilenetv2-random", 3)]
    + [("vit_tiny-random", 4), ("dinov2_small-random", 5), ("vit_base-random", 6)],
)
def test_the_operations_of_the_networks_that_were_timed_are_counted(name, row):
    grid = {"frozen": {"image_size": 224}}
    gflop, width = hours.counted(grid, "frozen", name)
    assert gflop == pytest.approx(hours.TIMED[row].gflop, rel=0.01)
    assert hours.TIMED[row].kind == backbones.get(name).family and width >= 192


def test_operations_are_counted_without_computing_them():
    import timm
    from torch.utils.flop_counter import FlopCounterMode

    network = timm.create_model("resnet18", num_classes=0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.forward_features(torch.zeros(1, 3, 64, 64))
    assert hours.operations("resnet18", 64) == (counter.get_total_flops() / 1e9, 512)


def test_a_network_is_as_efficient_as_the_nearest_that_was_timed():
    assert hours.on_h200("CNN", 8.17, training=True) == 5352  # ResNet50 itself
    assert hours.on_h200("CNN", 4 * 30.7, training=False) == 13_300 / 4  # VGG16 at 448 px
    assert hours.on_h200("CNN", 0.1, training=True) == 3546  # not faster than DenseNet121
    # 100 GFLOP/s, of which ResNet50 reaches 0.83: 83 of its 8.17 GFLOP.
    assert hours.on_cpu("CNN", 8.17, False, 100e9) == pytest.approx(83 / 8.17)
    assert hours.on_cpu("CNN", 8.17, True, 100e9) == pytest.approx(83 / 8.17 * 0.85 / 3)
    assert hours.nearest("Swin", 9.0, "trains").trains == 5352  # of any kind


def test_halving_trains_fewer_images():
    size = hours.Size(samples=100, images=500, training=300, classes=2, rotations=5)
    asked = {"learning_rates": [0.1, 0.01, 0.001], "epochs": 10}
    all_of_them = hours.training_images({"finetuned": asked}, "finetuned", size, 0.5)
    # 100 images validate and 100 test: a third of the work of an image in training.
    assert all_of_them == pytest.approx((10 * 0.5 * (300 + 100 / 3) + 100 / 3) * 3 * 5)
    halved = hours.training_images({"finetuned": asked | {"halving": True}}, "finetuned", size, 1)
    assert halved == pytest.approx((10 * (300 + 100 / 3) + 100 / 3) * (3 + 2 + 1 + 1 + 1))


def test_the_sizes_of_tasks_come_from_their_lists_and_publications(repository, tmp_path):
    grid = gridfile.read(repository / "grids" / "paper.yaml")
    assert hours.size(grid, tmp_path, "dermoscopy") == (10_015, 10_015, 10_015 * 0.6, 7, 5)
    assert hours.size(grid, tmp_path, "glioma_t1") == (100, 500, 300, 2, 5)
    assert hours.size(grid, tmp_path, "glioma_ucsf_t1") == (495, 2475, 1485, 3, 5)
    samples, images, training, *_ = hours.size(grid, tmp_path, "fundus_pm")
    assert (samples, images, training) == (798, 798, pytest.approx(318))


def test_a_data_set_without_a_list_is_counted_in_its_folder(repository, tmp_path, monkeypatch):
    grid = gridfile.read(repository / "grids" / "paper.yaml") | {"tasks": ["other_chest"]}
    jobs = [job for job in jobs_of(grid, tmp_path) if job.rule == "prepare"]
    monkeypatch.delenv("MEDLIB_DATA", raising=False)
    table, unknown = hours.estimate(grid, tmp_path, jobs, MACHINE)
    assert table.empty and len(unknown) == 1 and "other_chest" in unknown[0]
    monkeypatch.setenv("MEDLIB_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "other_chest" / "healthy"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.JPG", "notes.txt"):
        (folder / name).touch()
    assert hours.size(grid, tmp_path, "other_chest").samples == 2


def test_grids_that_have_been_run_took_about_as_long(repository, tmp_path):
    """Four hours for pocket; 8 to 15 minutes for demo.

    For the training of paper, LOG.md has 30.5 GPU hours, without validation and test images.
    """
    table, unknown = estimated(repository, "pocket", results=tmp_path)
    assert unknown == [] and 2 * HOUR < table["here"].sum() < 8 * HOUR
    demo, _ = estimated(repository, "demo", results=tmp_path)
    assert 4 * MINUTE < demo["here"].sum() < 30 * MINUTE
    paper, unknown = estimated(repository, "paper", results=tmp_path)
    starts = paper.loc["finetune", "jobs"] * hours.START
    assert unknown == [] and paper.loc["finetune", "jobs"] == 650
    assert paper.loc["finetune", "h200"] - starts == pytest.approx(30.5 * HOUR, rel=0.2)


def test_an_own_gpu_is_compared_with_an_h200(repository, tmp_path):
    same = hours.Machine(16, 0, hours.H200)
    table, _ = estimated(repository, "paper", same, tmp_path)
    assert table["here"].tolist() == pytest.approx(table["h200"].tolist())
    half, _ = estimated(repository, "paper", hours.Machine(16, 0, hours.H200 / 2), tmp_path)
    start = 650 * hours.START
    whole = table.loc["finetune", "here"] - start
    assert half.loc["finetune", "here"] - start == pytest.approx(2 * whole)
    lines = hours.words(table, same)
    assert "this machine, its GPU" in lines[1]
    (frozen,) = [line for line in lines if line.startswith("The frozen half")]
    (tuned,) = [line for line in lines if line.startswith("The fine-tuned half")]
    assert "A100" in tuned and "A100" not in frozen and "4 days to 5 days" in tuned
    assert "no surprise" in lines[-1]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(3, "under a minute"), (100, "2 min"), (1500, "20 min"), (5000, "80 min"), (6000, "2 h")]
    + [(30.5 * HOUR, "30 h"), (40 * HOUR, "2 days"), (2900 * 24 * HOUR, "8 years")],
)
def test_hours_are_told_in_rounded_words(seconds, told):
    assert hours.about(seconds) == told


def test_a_gpu_is_measured_in_a_process_of_its_own_and_left_out_if_that_fails(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hours, "MEASURE", "print(2.5e14)")
    assert hours.this_machine()[1:] == (0, 2.5e14)
    monkeypatch.setattr(hours, "MEASURE", "raise SystemExit(1)")
    assert hours.this_machine().gpu == 0 and hours.this_machine().rate > 1e9


def test_this_machine_is_measured():
    machine = hours.this_machine()
    assert machine.cores >= 1 and (machine.gpu > 1e12 or 1e9 < machine.rate < 1e13)
