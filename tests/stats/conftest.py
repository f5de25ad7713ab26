import pytest
from made_runs import BACKBONES, CLASSES, predictions, save

from medlib.stats import summaries


@pytest.fixture
def saved(tmp_path):
    """A results folder with 2 tasks × 2 backbones × 2 seeds, and the predictions of each run."""
    runs = {}
    for task in CLASSES:
        for number, backbone in enumerate(BACKBONES):
            for seed in (0, 1):
                frame = predictions(task, seed=10 * number + seed)
                runs[task, backbone, seed] = frame
                save(tmp_path, frame, task, backbone, seed)
    return tmp_path, runs


@pytest.fixture
def made(monkeypatch):
    """The cells whose rows were computed in this test, not read from a file."""
    calls, make = [], summaries._summarise_cell
    monkeypatch.setattr(summaries, "_summarise_cell", lambda *a: (make(*a), calls.append(a))[0])
    return calls
