"""The folder of the data sets is named, or the error says how to name it."""

import pytest

from medlib.data import cards


def test_phantoms_lie_in_the_results_and_a_named_folder_where_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDLIB_DATA", raising=False)
    assert cards.data_folder("phantoms", tmp_path / "r") == tmp_path / "r" / "phantoms"
    assert cards.data_folder(str(tmp_path), "r") == tmp_path
    monkeypatch.setenv("MEDLIB_DATA", str(tmp_path))
    assert cards.data_folder("real", "r") == tmp_path


@pytest.mark.parametrize("value", [None, ""])
def test_real_data_without_a_folder_says_how_to_name_one(monkeypatch, value):
    monkeypatch.delenv("MEDLIB_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("MEDLIB_DATA", value)
    with pytest.raises(FileNotFoundError) as caught:
        cards.data_folder("real", "r")
    message = str(caught.value)
    for part in ("MEDLIB_DATA is not set", "DATA=folder", "data='phantoms'"):
        assert part in message


@pytest.mark.parametrize("by", ["environment", "name"])
def test_a_data_folder_that_is_not_there_is_named(tmp_path, monkeypatch, by):
    missing = str(tmp_path / "nowhere")
    monkeypatch.setenv("MEDLIB_DATA", missing)
    with pytest.raises(FileNotFoundError) as caught:
        cards.data_folder("real" if by == "environment" else missing, "r")
    message = str(caught.value)
    for part in (repr(missing), "does not exist", "DATA=folder", "data='phantoms'"):
        assert part in message
