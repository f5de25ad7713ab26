"""Weights from the hub: fetched once, whole, of one revision; or refused soon, with a way out."""

import errno
import functools
import hashlib
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import made_hub
import made_rows
import pytest
import timm
import torch
from huggingface_hub import constants
from made_hub import REVISION, having, reply, serving
from safetensors.torch import load_file, save_file

from medlib import files
from medlib.core import backbones, networks
from medlib.core import weights as weight_files
from medlib.zoo import hub as zoo_hub
from medlib.zoo import weights as command
from medlib.zoo.hub import fetch

RESNET = "micro_resnet-imagenet"
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SOURCE = {"repository": "ours/vit", "file": "model.bin"}
OURS = made_rows.row("vit_tiny_patch16_224", patch=16, build=SMALL, source=SOURCE)


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """A machine without weights, its hub cache empty; `hub(endpoint)` says where its hub is."""

    at = functools.partial(made_hub.ask, monkeypatch=monkeypatch, folder=tmp_path)
    at("http://127.0.0.1:9")  # where nobody listens
    return at


def published(content):
    return having({"timm/test_resnet.r160_in1k/model.safetensors": content})


@pytest.fixture
def state():
    torch.manual_seed(1)
    values = timm.create_model("test_resnet").state_dict()
    return {
        n: v + 0.1 * torch.rand_like(v) if v.is_floating_point() else v for n, v in values.items()
    }


@pytest.fixture
def content(state, tmp_path):
    save_file(state, tmp_path / "served.safetensors")
    return (tmp_path / "served.safetensors").read_bytes()


def missing(name, seconds=10):
    """The message of the FileNotFoundError that comes within that many seconds."""
    outcome = []

    def call():
        try:
            outcome.append(fetch(backbones.get(name)))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)  # a call that hangs must not hang the tests
    thread.start()
    thread.join(seconds)
    assert outcome, f"there is no answer after {seconds} seconds"
    assert isinstance(outcome[0], FileNotFoundError), repr(outcome[0])
    return str(outcome[0])


def names_all(message, name=RESNET):
    parts = (
        f"No weights for {name}",
        f"{backbones.get(name).timm_name}.safetensors",
        "MEDLIB_WEIGHTS",
        "WEIGHTS=folder",
        "where the hub can be reached",
        name.split("-")[0] + "-random",
    )
    return all(part in message for part in parts)


# ------------------------------------------------------------------------------- no file to be had


def test_without_folder_and_hub_the_message_names_the_file_and_both_ways_out():
    message = missing(RESNET)
    assert names_all(message) and "the hub: ConnectError" in message


def test_a_hub_that_never_answers_is_given_up_within_ten_seconds(hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait in its queue
        hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert names_all(missing(RESNET))


@pytest.mark.parametrize("status", [404, 401, 403, 503])
def test_a_hub_that_refuses_is_given_up_within_ten_seconds(hub, status):
    with serving(lambda *_: reply(status)) as (endpoint, asked):
        hub(endpoint)
        assert names_all(missing(RESNET))
    assert asked


def test_a_gated_repository_says_where_its_licence_is_accepted(hub):
    with serving(lambda *_: reply(401, X_Error_Code="GatedRepo")) as (endpoint, _):
        hub(endpoint)
        message = missing(RESNET)
    where = "huggingface.co/timm/test_resnet.r160_in1k"
    assert names_all(message) and f"accept the licence at {where}, and set HF_TOKEN" in message


@pytest.mark.parametrize("rest", [reply(200), reply(503), None], ids=["portal", "503", "silence"])
def test_a_hub_of_which_only_the_front_page_answers_is_given_up_too(hub, monkeypatch, rest):
    monkeypatch.setattr(zoo_hub, "TIMEOUT", 1)
    with serving(lambda _, path, __: reply(200) if path == "/" else rest) as (endpoint, _):
        hub(endpoint)
        assert names_all(missing(RESNET))


@pytest.mark.parametrize(("variable", "constant"), [("1", False), ("", True)])
def test_offline_means_that_nothing_is_asked(hub, monkeypatch, variable, constant):
    with serving(lambda *_: reply(404)) as (endpoint, asked):
        hub(endpoint)
        # Both mean offline: the library reads the variable once, and accepts other words for 1.
        monkeypatch.setenv("HF_HUB_OFFLINE", variable)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constant)
        message = missing(RESNET, seconds=5)
    assert names_all(message)
    assert "offline" in message.lower()
    assert asked == []


def test_weights_that_no_hub_has_are_not_asked_for(hub):
    with serving(lambda *_: reply(404)) as (endpoint, asked):
        hub(endpoint)
        message = missing("mobilenetv2-imagenet", seconds=5)
    assert "mobilenetv2_100.tf_in1k.safetensors" in message
    assert "names no file on a hub" in message
    assert asked == []


def test_an_error_without_words_is_a_missing_file_as_well(monkeypatch):
    def fail(*_):
        raise TimeoutError

    monkeypatch.setattr(zoo_hub, "_download", fail)
    message = missing(RESNET)
    assert names_all(message)
    assert "TimeoutError" in message


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "The disk of .*hub-cache is full, or your quota: make room and call the"),
        (errno.EROFS, "hub-cache cannot be written to. Name a folder that can be: HF_HOME for"),
    ],
)
def test_a_cache_that_cannot_be_written_to_is_said_so(hub, monkeypatch, content, number, words):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    with serving(published(content)) as (endpoint, _):
        hub(endpoint)
        with pytest.raises(OSError, match=words):
            fetch(backbones.get(RESNET))
    assert not weight_files.FOLDER.exists() or not list(weight_files.FOLDER.iterdir())


def test_a_full_disk_is_said_so(hub, small_disk, monkeypatch, content):
    monkeypatch.setattr(weight_files, "FOLDER", small_disk)
    (small_disk / "full").write_bytes(bytes(2**20 - 2**14))
    with serving(published(content)) as (endpoint, _):
        hub(endpoint)
        with pytest.raises(OSError, match="The disk of .* is full"):
            fetch(backbones.get(RESNET), small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["full"]


# ----------------------------------------------------------------------------------- a file is had


def write_cache(cache, state):
    """The cache as huggingface_hub lays it out."""
    folder = cache / "models--timm--test_resnet.r160_in1k"
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    save_file(state, snapshot / "model.safetensors")
    return snapshot / "model.safetensors"


def same(model, state):
    own = model.state_dict()
    return all(torch.equal(value, state[name]) for name, value in own.items())


def test_weights_in_the_hubs_cache_are_found_without_any_network(hub, state, content):
    write_cache(Path(constants.HF_HUB_CACHE), state)
    with serving(lambda *_: reply(503)) as (endpoint, asked):
        hub(endpoint)
        path = fetch(backbones.get(RESNET))
        model, digest = networks.build(RESNET, 32)
    assert asked == []
    assert digest == hashlib.sha256(content).hexdigest() == files.file_sha256(path)
    assert same(model, state)


@pytest.mark.parametrize("trouble", ["none", "two errors first", "answers after six seconds"])
def test_weights_are_downloaded_once_from_a_hub_that_answers(hub, state, content, trouble, capfd):
    has = published(content)

    def respond(*question):
        if trouble == "two errors first" and len(asked) < 3:
            return reply(503)
        if trouble == "answers after six seconds" and len(asked) == 1:
            time.sleep(6)
        return has(*question)

    with serving(respond) as (endpoint, asked):
        hub(endpoint)
        path = fetch(backbones.get(RESNET))
        assert [method for method, _ in asked].count("GET") == 1
        asked.clear()
        assert fetch(backbones.get(RESNET)) == path
        assert asked == []
    said = capfd.readouterr().err
    assert (
        said.count("Fetching the weights of micro_resnet-imagenet from the hub: timm/test_re") == 1
    )
    model, digest = networks.build(RESNET, 32)
    assert digest == hashlib.sha256(content).hexdigest()
    assert same(model, state)
    assert files.read_json(zoo_hub.LOCK) == {
        backbones.get(RESNET).timm_name: {"sha256": digest, "revision": REVISION}
    }


def test_an_interrupted_download_goes_on_where_it_stopped(hub, content, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**12)
    has, ranges = published(content), []

    def respond(method, path, header):
        if method == "GET":
            ranges.append(header.partition("range: ")[2].partition("\r")[0])
        whole = has(method, path, header)
        return whole[: -len(content) // 2] if len(ranges) == 1 and method == "GET" else whole

    with serving(respond) as (endpoint, _):
        hub(endpoint)
        path = fetch(backbones.get(RESNET))
    assert path.read_bytes() == content
    first, second = ranges
    assert first == "" and 0 < int(second.removeprefix("bytes=").rstrip("-")) < len(content)


def test_the_revision_of_the_first_use_is_asked_for_again(hub, content, monkeypatch, tmp_path):
    save = {"sha256": hashlib.sha256(content).hexdigest(), "revision": "f" * 40}
    files.save_json(zoo_hub.LOCK, {backbones.get(RESNET).timm_name: save})
    where = f"/timm/test_resnet.r160_in1k/resolve/{'f' * 40}/model.safetensors"
    with serving(published(content)) as (endpoint, asked):
        hub(endpoint)
        fetch(backbones.get(RESNET))
    assert {path for _, path in asked} == {where}


def test_other_weights_than_those_of_the_first_use_are_refused(hub, content):
    save = {"sha256": "0" * 64, "revision": None}
    files.save_json(zoo_hub.LOCK, {backbones.get(RESNET).timm_name: save})
    with serving(published(content)) as (endpoint, _):
        hub(endpoint)
        with pytest.raises(ValueError, match="had 000000000000… when it was first used"):
            fetch(backbones.get(RESNET))


def test_a_folder_for_a_machine_without_network_holds_copies(hub, content, tmp_path, monkeypatch):
    folder = tmp_path / "to carry"
    with serving(published(content)) as (endpoint, _):
        hub(endpoint)
        path = fetch(backbones.get(RESNET), folder)
    assert path == folder / "test_resnet.r160_in1k.safetensors" and not path.is_symlink()
    assert path.read_bytes() == content
    hub("http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    monkeypatch.setenv("MEDLIB_WEIGHTS", str(folder))
    assert fetch(backbones.get(RESNET)) == path
    # What is in a folder already is copied from there.
    assert fetch(backbones.get(RESNET), tmp_path / "two").read_bytes() == content


def own(folder, state):
    """A user's own file of weights."""
    folder.mkdir(exist_ok=True)
    path = folder / "test_resnet.r160_in1k.safetensors"
    save_file(state, path)
    return path


def test_weights_are_those_of_their_first_use_or_refused(state, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDLIB_WEIGHTS", str(tmp_path / "mine"))
    path = own(tmp_path / "mine", state)
    assert fetch(backbones.get(RESNET)) == path
    noted = {"sha256": files.file_sha256(path), "revision": None}
    assert files.read_json(zoo_hub.LOCK) == {backbones.get(RESNET).timm_name: noted}
    assert fetch(backbones.get(RESNET)) == path
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))  # it would load
    for _ in range(2):
        with pytest.raises(ValueError, match="when it was first used. Restore it, or take test_re"):
            fetch(backbones.get(RESNET))
    path.write_bytes(content)
    assert fetch(backbones.get(RESNET)) == path


def test_a_lock_that_cannot_be_written_is_no_error(state, monkeypatch, tmp_path):
    own(weight_files.FOLDER, state)
    (tmp_path / "file").touch()
    monkeypatch.setattr(zoo_hub, "LOCK", tmp_path / "file" / "weights.lock.json")
    fetch(backbones.get(RESNET))


def test_a_damaged_download_is_refused(hub, content):
    with serving(published(content)) as (endpoint, _):
        hub(endpoint)
        path = fetch(backbones.get(RESNET))
    blob = path.resolve()  # the hub's cache names a file by its sha256
    assert path.is_symlink() and blob.name == files.file_sha256(blob)
    blob.write_bytes(content[: -(2**10)] + bytes(2**10))
    zoo_hub.LOCK.unlink()  # also at a first use
    with pytest.raises(ValueError, match="is damaged: its sha256 is .*. Remove .*blobs"):
        fetch(backbones.get(RESNET))


# ------------------------------------------------------------------------- files of other libraries


@pytest.fixture
def ours(hub, tmp_path):
    """A hub with a training's own file, and the tensors in it."""
    torch.manual_seed(0)
    values = timm.create_model(OURS.architecture, num_classes=3, **SMALL).state_dict()
    torch.save({"model": {f"module.{n}": v for n, v in values.items()}}, tmp_path / "model.bin")
    has = {"ours/vit/model.bin": (tmp_path / "model.bin").read_bytes()}
    with serving(having(has)) as (endpoint, asked):
        hub(endpoint)
        yield values, asked


def test_a_file_of_another_library_is_fetched_and_converted_once(ours, monkeypatch):
    values, asked = ours
    path = fetch(OURS)
    found = load_file(path)
    assert found and all(torch.equal(value, values[name]) for name, value in found.items())
    assert not any(name.startswith("head") for name in found)
    asked.clear()
    assert fetch(OURS) == path and asked == []
    noted = {"sha256": files.file_sha256(path), "revision": REVISION}
    assert files.read_json(zoo_hub.LOCK) == {OURS.timm_name: noted}
    monkeypatch.setitem(backbones.TABLE, OURS.name, OURS)
    assert networks.build(OURS.name, 32)[1] == noted["sha256"]


def test_a_row_that_names_another_source_does_not_take_the_old_file(ours):
    path = fetch(OURS)
    assert fetch(replace(OURS, source=SOURCE | {"revision": REVISION})) == path
    for change in ({"repository": "theirs/vit"}, {"revision": "f" * 40}):
        with pytest.raises(ValueError, match="is from ours/vit/model.bin@0123.* it is fetched ag"):
            fetch(replace(OURS, source=SOURCE | change))


def test_a_file_that_does_not_fit_its_row_leaves_nothing(ours):
    with pytest.raises(ValueError, match="width: 24, not 32"):
        fetch(replace(OURS, build=SMALL | {"embed_dim": 32}))
    assert not weight_files.FOLDER.exists() or not list(weight_files.FOLDER.iterdir())


def test_the_command_fetches_rows_and_says_their_licences(ours, monkeypatch, capsys):
    monkeypatch.setitem(backbones.TABLE, OURS.name, replace(OURS, gated=True))
    monkeypatch.setattr("sys.argv", ["weights", "fetch", OURS.name, "micro_resnet-random"])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"{OURS.timm_name}.safetensors (licence: MIT, gated)")
    assert lines[1] == "micro_resnet-random: no file (licence: Apache-2.0)"
