"""The house style: figures are saved with the same bytes each time, and their captions."""

import os
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from shown import ARMS, TASKS, long_table

from medlib.show import style
from medlib.show.figures import comparison


def test_use_style_sets_embedded_fonts_and_a_fixed_salt():
    with matplotlib.rc_context():
        matplotlib.rcParams["pdf.fonttype"] = 3
        style.use_style()
        assert matplotlib.rcParams["pdf.fonttype"] == 42
        assert matplotlib.rcParams["svg.hashsalt"]


def test_save_writes_four_valid_files_and_the_same_bytes_again(tmp_path):
    table = long_table(ARMS)
    for folder in ("a", "b"):
        fig = comparison.main_comparison(table, TASKS)
        paths = style.save(fig, tmp_path / folder / "deep" / "main.v2", table, "a caption")
    assert [path.name for path in paths] == [f"main.v2.{k}" for k in ("png", "pdf", "svg", "csv")]
    for path in paths:
        twin = tmp_path / "a" / "deep" / path.name
        assert path.read_bytes() == twin.read_bytes(), path.name
    png, pdf, svg, csv = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF") and b"<svg" in svg
    assert b"CreationDate" not in pdf and b"<dc:date>" not in svg
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf  # TrueType, embedded
    assert plt.imread(paths[0]).shape[1] == 1400  # 7 inches at 200 dpi
    pd.testing.assert_frame_equal(pd.read_csv(paths[3]), table)
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(p.name for p in paths)


def test_what_was_saved_is_saved_again_to_the_same_bytes(tmp_path):
    fig = comparison.main_comparison(long_table(ARMS), TASKS)
    paths = [style.save(fig, tmp_path / name, caption="a caption") for name in ("a", "b")]
    first, again = ([path.read_bytes() for path in of] for of in paths)
    assert first == again


def test_save_gives_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from medlib.show import style\n"
        "from medlib.show.figures import embeddings\n"
        "e = np.random.default_rng(0).normal(size=(60, 8))\n"
        "fig = embeddings.projection(e, ['a', 'b'] * 30, ['a', 'b'], title='é')\n"
        "style.save(fig, sys.argv[1])"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed / "figure")],
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "MPLBACKEND": "Agg"},
        )
    for kind in ("png", "pdf", "svg"):
        one, two = ((tmp_path / seed / f"figure.{kind}").read_bytes() for seed in ("1", "2"))
        assert one == two, kind


def test_save_leaves_the_old_file_when_drawing_fails(tmp_path):
    (tmp_path / "x.png").write_bytes(b"old")
    fig = plt.figure()
    fig.text(0, 0, r"$\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        style.save(fig, tmp_path / "x")
    plt.close(fig)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"old"


def test_figures_do_not_stay_open_and_do_not_change_the_settings():
    before, size = plt.get_fignums(), matplotlib.rcParams["font.size"]
    comparison.main_comparison(long_table(ARMS), TASKS)
    assert plt.get_fignums() == before
    assert matplotlib.rcParams["font.size"] == size


def test_a_caption_follows_the_words_that_are_there_once_and_the_figure_grows_by_its_lines():
    fig = comparison.main_comparison(long_table(ARMS), TASKS)
    height, at = fig.get_figheight(), fig.axes[0]
    fig.draw_without_rendering()
    panel = at.get_window_extent().height
    style.caption_below(fig, "What is drawn.")
    for _ in range(2):
        style.caption_below(fig, "small ImageNet backbones\nand random controls; " * 9)
        text = fig.get_supxlabel()
        assert " ".join(text.split()).startswith("What is drawn. small ImageNet backbones and")
        assert text.count("random controls") == 9 and text.count("What is drawn.") == 1
        assert fig.get_figheight() == pytest.approx(height + 0.14 * len(text.splitlines()))
    fig.draw_without_rendering()
    assert at.get_window_extent().height == pytest.approx(panel, abs=0.1 * panel)
