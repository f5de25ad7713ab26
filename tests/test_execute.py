"""medlib.execute refuses what papermill lets pass, and says what to do instead."""

import json
import subprocess
import sys

import nbformat
import pytest

from medlib import execute


@pytest.fixture
def notebook(tmp_path):
    """A notebook with two parameters, that writes its sum, or fails when asked to."""
    cell = nbformat.v4.new_code_cell(
        "fold: int = 1  # which fold\nrate: float = 0.5  # learning rate\n"
        "flag: bool = False  # fail\nnames: list = ['a']  # some names",
        metadata={"tags": ["parameters"]},
    )
    body = nbformat.v4.new_code_cell(
        "from pathlib import Path\nassert not flag, 'asked to fail'\n"
        "Path('sum.txt').write_text(str(fold + rate))"
    )
    path = tmp_path / "sum.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, body], metadata=kernel), path)
    return path


def test_it_runs_in_the_notebooks_folder_with_its_parameters(notebook, tmp_path):
    output = tmp_path / "out" / "sum.ipynb"
    execute.execute(notebook, output, {"fold": 2, "rate": 1}, [str(tmp_path / "sum.txt")])
    assert (tmp_path / "sum.txt").read_text() == "3"
    assert nbformat.read(output, 4).metadata.kernelspec.name == "python3"


def test_all_wrong_parameters_are_named_at_once_and_nothing_runs(notebook, tmp_path):
    wrong = {"fald": 1, "fold": "02", "rate": "1e-4", "flag": 1, "names": [1]}
    with pytest.raises(execute.ExecutionError) as error:
        execute.execute(notebook, tmp_path / "out.ipynb", wrong)
    for part in (
        "'fald'. Did you mean 'fold'?",
        'fold is "02" (str), but must be int',
        'rate is "1e-4" (str), but must be float',
        "flag is 1 (int), but must be bool",
        "names is [1] (list)",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "out.ipynb").exists()


def test_true_is_no_number(notebook):
    with pytest.raises(execute.ExecutionError, match="fold is true"):
        execute.check_parameters(notebook, {"fold": True})


def test_a_failing_cell_is_reported_with_its_message_and_where_to_look(notebook, tmp_path):
    output = tmp_path / "out.ipynb"
    with pytest.raises(execute.ExecutionError, match="asked to fail") as error:
        execute.execute(notebook, output, {"flag": True})
    assert str(output) in str(error.value)
    assert "asked to fail" in output.read_text()


def test_a_promised_file_that_is_not_written_is_a_failure(notebook, tmp_path):
    with pytest.raises(execute.ExecutionError, match="did not write:\n.*other.txt"):
        execute.execute(notebook, tmp_path / "out.ipynb", {}, [str(tmp_path / "other.txt")])


def run(*arguments):
    command = [sys.executable, "-m", "medlib.execute", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_line_takes_json_and_ends_with_a_status(notebook, tmp_path):
    good = run(notebook, tmp_path / "o.ipynb", "--parameters", json.dumps({"fold": 40, "rate": 2}))
    assert (good.returncode, (tmp_path / "sum.txt").read_text()) == (0, "42")
    bad = run(notebook, tmp_path / "o.ipynb", "--parameters", '{"fold": 2')
    assert bad.returncode == 2 and "is not JSON" in bad.stderr
    missing = run(tmp_path / "none.ipynb", tmp_path / "o.ipynb")
    assert missing.returncode == 1 and "There is no notebook" in missing.stderr


def test_sources_follow_imports_from_the_notebook_through_the_modules(repository):
    names = [p.name for p in execute.sources(repository / "notebooks" / "04_fine_tune.ipynb")]
    assert names[0] == "04_fine_tune.ipynb"
    assert {"finetune.py", "features.py", "metrics.py", "errors.py"} <= set(names)
    assert not {"probe.py", "compare.py"} & set(names)
