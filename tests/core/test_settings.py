"""medlib.core.settings: a training setting is one field, and its value is checked at once."""

import ast
import dataclasses
import json

import pytest

from medlib.core import settings
from medlib.core.settings import FineTuning


def parameters(repository):
    """The default, type and comment of each parameter of notebook 04."""
    notebook = repository / "notebooks" / "04_fine_tune.ipynb"
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    source = "".join(cell["source"])
    for line, node in zip(source.splitlines(), ast.parse(source).body, strict=True):
        comment = line.partition("  # ")[2]
        yield node.target.id, (ast.literal_eval(node.value), node.annotation.id, comment)


def test_notebook_04_takes_every_setting_with_its_default_type_and_help(repository):
    beside = {"task", "backbone", "data", "results", "image_size", "regime", "label_fraction"}
    given = {
        name: value
        for name, value in parameters(repository)
        if name not in beside | {"seed", "device", "again", "save_models"}
    }
    fields = {}
    for field in dataclasses.fields(FineTuning):
        default, kind = field.default, field.type.__name__
        if isinstance(default, tuple):  # a notebook's parameter is what JSON can hold
            default, kind = list(default), "list"
        fields[field.name] = (default, kind, field.metadata["help"])
    assert given == fields and list(given) == list(fields)


def test_a_list_of_learning_rates_is_kept_as_a_tuple():
    assert FineTuning(learning_rates=[1e-3]) == FineTuning(learning_rates=(1e-3,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0, but must be 1 or more"),
        ({"epochs": "10"}, "epochs is '10', but must be 1 or more"),
        ({"epochs": True}, "epochs is True, but must be 1 or more"),
        ({"warmup": 1.5}, "warmup is 1.5, but must be from 0 to 1"),
        ({"layer_decay": 0}, "layer_decay is 0, but must be more than 0"),
        ({"weight_decay": -1}, "weight_decay is -1, but must be 0 or more"),
        ({"balanced": "yes"}, "balanced is 'yes', but must be bool"),
        ({"learning_rates": []}, "learning_rates is (), but must be positive numbers"),
        ({"learning_rates": 0.1}, "learning_rates is 0.1, but must be positive numbers"),
        ({"learning_rates": ["a"]}, "learning_rates is ('a',), but must be positive numbers"),
        ({"checkpointing": "nevr"}, "Unknown checkpointing 'nevr'. Did you mean 'never'?"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused(values, message):
    with pytest.raises(ValueError) as caught:
        FineTuning(**values)
    assert message in str(caught.value)


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        FineTuning(epochs=0, lora_rank=0, checkpointing="on")
    assert all(name in str(caught.value) for name in ("epochs", "lora_rank", "checkpointing"))


def test_what_trains_is_a_regime():
    assert set(settings.TRAINED) == set(settings.REGIMES) - {"frozen"}
