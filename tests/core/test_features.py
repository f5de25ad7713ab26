"""medlib.core.features: embeddings of the frozen network, made once and never out of date."""

import contextlib
import os
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch

from medlib import files
from medlib.core import backbones, features, heads, loading, metrics, networks, splits
from medlib.core.fast import engine, transfer
from medlib.core.settings import Extraction

CNN = "micro_resnet-random"
SIZE = 32


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


class Pack(NamedTuple):
    """Images, and a hash that names them."""

    images: np.ndarray
    hash: str


class Made(NamedTuple):
    embeddings: np.ndarray
    meta: dict


def make_pack(n=7, size=SIZE, start=0):
    images = np.stack([picture(start + i, size) for i in range(n)])
    return Pack(images, files.content_hash(images))


def extract(pack, backbone, folder, seed=0, **settings):
    own = {"images_hash": pack.hash, "seed": seed, "settings": Extraction(**settings)}
    return Made(*features.extract(pack.images, backbone, folder, **own))


def holding(monkeypatch):
    """What networks.build returns from now on, in a list: the models that are used."""
    build, models = networks.build, []

    def built(*args, **kwargs):
        model, digest = build(*args, **kwargs)
        models.append(model)
        return model, digest

    monkeypatch.setattr(networks, "build", built)
    return models


def break_off(monkeypatch, call):
    """Interrupt the network in this call. Returns the sizes of the batches that it got."""
    embed, sizes = networks.embed, []

    def counted(row, model, normalised):
        sizes.append(len(normalised))
        if len(sizes) == call:
            raise KeyboardInterrupt
        return embed(row, model, normalised)

    monkeypatch.setattr(networks, "embed", counted)
    return sizes


def forbid_the_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("the network was run")

    monkeypatch.setattr(networks, "embed", refuse)


# ---------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize(
    ("backbone", "size", "width"),
    [(CNN, 32, 96), ("vit_tiny-random", 32, 192), ("dinov2_small-random", 28, 768)],
)
def test_an_embedding_is_what_the_network_gives_for_that_image_alone(
    tmp_path, backbone, size, width
):
    row = backbones.get(backbone)
    pack = make_pack(5, size)
    made = extract(pack, backbone, tmp_path / "f", batch_size=3, device="cpu", seed=2)
    assert made.embeddings.shape == (5, width) and made.embeddings.dtype == np.float32
    model, _ = networks.build(backbone, size, seed=2)
    config = timm.get_pretrained_cfg(row.timm_name).to_dict()
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    for i in range(5):
        pixels = torch.from_numpy(picture(i, size)).permute(2, 0, 1)
        with torch.no_grad():
            maps = model.forward_features(((pixels / 255 - mean) / std)[None])[0]
        if backbone == CNN:
            expected = maps.flatten(1).mean(1)  # over the positions of each channel
        elif backbone == "vit_tiny-random":
            expected = maps[0]  # the class token
        else:
            assert len(maps) == 1 + 4  # class token and 2 × 2 patches
            expected = torch.cat([maps[0], maps[1:].sum(0) / 4])
        np.testing.assert_allclose(made.embeddings[i], expected.numpy(), rtol=0, atol=1e-5)
    assert np.ptp(made.embeddings, axis=0).max() > 1e-3, "all embeddings are alike"


def test_the_size_of_a_batch_does_not_change_an_embedding(tmp_path):
    pack = make_pack(9)
    by_size = [
        np.array(extract(pack, CNN, tmp_path / str(b), batch_size=b).embeddings)
        for b in (1, 4, 9, 50)
    ]
    for other in by_size[1:]:
        np.testing.assert_allclose(other, by_size[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", [CNN, "micro_efficientnet-random"])
def test_extraction_and_probing_leave_parameters_and_batch_norm_statistics_alone(
    tmp_path, monkeypatch, backbone
):
    models = holding(monkeypatch)
    made = extract(make_pack(12), backbone, tmp_path / "f", batch_size=5)
    (model,) = models
    fresh, _ = networks.build(backbone, SIZE)
    assert any("running_mean" in name for name in model.state_dict())
    assert networks.state_digest(model) == networks.state_digest(fresh)
    assert len(list(probed(made, heads.HEADS))) == 3
    assert networks.state_digest(model) == networks.state_digest(fresh)
    assert all(p.grad is None for p in model.parameters())
    # The digest does see the statistics.
    model.train()(torch.randn(2, 3, SIZE, SIZE))
    assert networks.state_digest(model) != networks.state_digest(fresh)


def test_the_record_says_what_the_embeddings_depend_on(tmp_path):
    pack = make_pack()
    meta = extract(pack, CNN, tmp_path / "f", seed=3).meta
    model, digest = networks.build(CNN, SIZE, seed=3)
    assert meta["images"] == pack.hash
    assert meta["backbone"] == CNN and meta["pretraining"] == "random" and meta["seed"] == 3
    assert meta["weights_digest"] == digest
    assert meta["image_size"] == SIZE and meta["precision"] == "float32"
    assert meta["parameters"] == sum(p.numel() for p in model.parameters())
    digest = files.file_sha256(tmp_path / "f" / "embeddings.npy")
    assert meta["sha256"] == {"embeddings.npy": digest}


def test_auto_is_cuda_where_there_is_some_and_any_other_device_is_itself(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=available: there)
        assert loading.device_name("auto") == expected
        assert loading.device_name("cpu") == "cpu"
        assert loading.device_name("cuda:1") == "cuda:1"


@pytest.mark.gpu
def test_a_cuda_device_gives_the_embeddings_of_the_cpu(tmp_path, cuda):
    pack = make_pack()
    here = extract(pack, CNN, tmp_path / "cpu", device="cpu")
    there = extract(pack, CNN, tmp_path / "cuda", device=cuda)
    assert there.meta["device"] == "cuda"
    np.testing.assert_allclose(there.embeddings, here.embeddings, rtol=1e-2, atol=1e-2)
    exact = extract(pack, CNN, tmp_path / "exact", device=cuda, precision="float32")
    np.testing.assert_allclose(exact.embeddings, here.embeddings, rtol=0, atol=1e-5)


HAS_BFLOAT16 = engine.cpu_has_bfloat16  # before tests are given another one
BOTH = ["dinov2_small-random", "resnet50-random"]


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", BOTH)
def test_half_precision_keeps_every_embedding_and_what_can_be_read_from_it(
    tmp_path, cuda, backbone
):
    compare_precisions(tmp_path, backbone, cuda, "float16")


@pytest.mark.parametrize("backbone", BOTH)
def test_bfloat16_on_a_cpu_keeps_every_embedding_and_what_can_be_read_from_it(
    tmp_path, monkeypatch, backbone
):
    monkeypatch.setattr(engine, "cpu_has_bfloat16", lambda: True)
    compare_precisions(tmp_path, backbone, "cpu", "bfloat16")


def compare_precisions(folder, backbone, device, lower):
    pack = make_pack(60, 56)
    pixels = np.array(pack.images)
    pixels[1::2, ::2] //= 2  # stripes in the images of "yes"
    pack = pack._replace(images=pixels)
    exact = extract(pack, backbone, folder / "a", device=device, precision="float32")
    half = extract(pack, backbone, folder / "b", device=device)
    assert half.meta["precision"] == lower
    assert cosines(half, exact).min() >= 0.999
    areas = [linear_auroc(made) for made in (exact, half)]
    assert areas[0] > 0.9 and areas[0] == pytest.approx(areas[1], abs=0.002)


def cosines(one, other):
    """The cosine similarity of two extractions' embeddings, image by image."""
    a, b = np.array(one.embeddings, np.float64), np.array(other.embeddings, np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def probed(made, names):
    """The runs of heads on embeddings whose classes alternate, in three folds."""
    number = np.arange(len(made.embeddings))
    parts = splits.rotations(number // 2 % 3, number, number % 2)
    runs = [(name, 0, parts) for name in names]
    return heads.sweep(made.embeddings, number % 2, number, runs, n_classes=2)


def linear_auroc(made):
    """The AUROC of the linear head; each image is predicted once, by the rotation that tests it."""
    ((_, parts, *_),) = probed(made, ["linear"])
    number = np.arange(len(made.embeddings))
    y = np.concatenate([number[number // 2 % 3 == fold] % 2 for fold in range(3)])
    return metrics.auroc(y, np.concatenate([part.test for part in parts]))


# --------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("bfloat16", "cpu does not have 'bfloat16': set precision='float32'"),
        ("bf16", "Unknown precision 'bf16'"),
    ],
)
def test_a_precision_that_the_device_does_not_have_is_refused(tmp_path, precision, message):
    pack = make_pack()
    with pytest.raises(ValueError, match=message):
        extract(pack, CNN, tmp_path / "f", device="cpu", precision=precision)
    assert not (tmp_path / "f").exists()
    assert engine.precision_name("auto", "cuda") == "float16"


def test_a_cpu_has_bfloat16_where_the_kernel_lists_it(monkeypatch):
    monkeypatch.setattr(engine, "cpu_has_bfloat16", HAS_BFLOAT16.__wrapped__)  # not cached
    for flags, expected in (
        ("fpu avx512f avx512_bf16 vaes", ["bfloat16", "bfloat16"]),
        ("fpu amx_tile amx_bf16", ["bfloat16", "bfloat16"]),
        ("fpu avx512f avx512_vnni", ["float32", None]),
    ):
        monkeypatch.setattr(Path, "read_text", lambda *_, f=flags, **__: f"flags\t: {f}\n")
        assert engine.precision_name("auto", "cpu") == expected[0]
        if expected[1]:
            assert engine.precision_name("bfloat16", "cpu") == expected[1]
            with pytest.raises(ValueError, match="cpu does not have 'float16': set precision='bf"):
                engine.precision_name("float16", "cpu")


class Rounded(torch.nn.Module):
    """An image's colours as features. In lower precision the third is wrong by ``off`` × red."""

    def __init__(self, off):
        super().__init__()
        self.off = torch.nn.Parameter(torch.tensor(off), requires_grad=False)

    def forward_features(self, x):
        wrong = 0 if x.dtype == torch.float32 else self.off
        return torch.stack([x[:, 0], x[:, 1], x[:, 2] + wrong * x[:, 0]], 1)


@pytest.mark.parametrize(
    ("off", "cosine", "auto", "allowed"),
    [(0.0, 1.0, "float16", True), (0.03, 0.99955, "float32", True), (0.1, 0.995, "float32", False)],
)
def test_a_lower_precision_is_used_where_the_network_bears_it(
    monkeypatch, off, cosine, auto, allowed
):
    # The device is named CUDA, but everything is computed on the CPU.
    name = engine.precision_name
    monkeypatch.setattr(engine, "precision_name", lambda asked, _: name(asked, "cuda"))
    monkeypatch.setattr(networks, "normalise", lambda row, pixels: pixels)
    row, model = backbones.get(CNN), Rounded(off)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    found, how = engine.suitable(row, model, "auto", red)
    assert how["precision"] == auto
    assert how["cosine_to_float32"] == pytest.approx(cosine, abs=1e-4)
    assert found.off.dtype == getattr(torch, auto) and model.off.dtype == torch.float32
    same, how = engine.suitable(row, model, "float32", red)
    assert same is model and how == {"precision": "float32", "cosine_to_float32": None}
    if allowed:
        found, how = engine.suitable(row, model, "float16", red)
        assert how["precision"] == "float16" and found.off.dtype == torch.float16
    else:
        with pytest.raises(FloatingPointError, match=r"float16.*0\.995\d, .*precision='float32'"):
            engine.suitable(row, model, "float16", red)


def test_compiling_changes_no_embedding_and_is_recorded(tmp_path):
    pack = make_pack(7)
    plain = extract(pack, CNN, tmp_path / "plain", batch_size=3, compiled=False)
    fast = extract(pack, CNN, tmp_path / "fast", batch_size=3, compiled=True)
    assert (plain.meta["compiled"], fast.meta["compiled"]) == (False, True)
    np.testing.assert_allclose(fast.embeddings, plain.embeddings, rtol=0, atol=1e-5)


def test_where_nothing_can_be_compiled_it_is_said_and_recorded(tmp_path, monkeypatch):
    def compiler(function, **options):
        def fail(*args):
            raise RuntimeError("No working C++ compiler found")

        return fail

    monkeypatch.setattr(torch, "compile", compiler)
    pack = make_pack()
    with pytest.warns(UserWarning, match=r"without: No working C\+\+ compiler"):
        made = extract(pack, CNN, tmp_path / "f", compiled=True)
    assert made.meta["compiled"] is False and len(made.embeddings) == 7


def test_whether_to_compile_follows_from_the_number_of_images(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "_compiled", lambda *args: asked.append(1) or (args[-1], True))
    monkeypatch.setitem(engine.COMPILE_FROM, "cpu", 7)
    for n, expected in ((6, 0), (7, 1)):
        pack = make_pack(n)
        made = extract(pack, CNN, tmp_path / f"f{n}", device="cpu")
        assert len(asked) == expected and made.meta["compiled"] == bool(expected)


def test_a_batch_on_a_cuda_device_is_held_until_its_work_is_done(monkeypatch):
    """Stand-ins for CUDA: work is done only when it is waited for."""
    done, released = [], []

    class Event:
        def __init__(self, number):
            self.synchronize = lambda: done.append(number)

    class Stream:
        def __init__(self, device=None):
            self.events = iter(range(100))

        def wait_stream(self, other):
            pass

        def record_event(self):
            return Event(next(self.events))

    class Batch:
        def __init__(self, number):
            self.number = number

        def to(self, device, non_blocking):
            there = Batch(self.number)
            weakref.finalize(there, released.append, self.number)
            return there

    current = Stream()
    for name, fake in {
        "Stream": Stream,
        "current_stream": lambda _: current,
        "stream": lambda _: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    transfer._copying_stream.cache_clear()
    for batch in transfer.copied(map(Batch, range(6)), torch.device("cuda")):
        number = batch.number
        del batch
        assert number not in released and released == done
        assert number - len(done) <= transfer.AHEAD
    transfer._copying_stream.cache_clear()
    assert done == list(range(6 - transfer.AHEAD))


@pytest.mark.gpu
def test_a_cuda_device_that_lags_behind_gets_every_batch_as_it_is(cuda):
    pictures = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8, 1)
    ahead, begun, done = [], 0, []

    def behind():
        return begun - sum(event.query() for event in done)

    seen = []
    for batch in loading.batches(pictures, np.arange(40).reshape(20, 2), cuda):
        ahead.append(behind())  # batches that the device has not done yet
        begun += 1
        torch.cuda._sleep(20_000_000)  # about 10 ms, before the batch is read
        seen.append(batch.clone())
        done.append(torch.cuda.current_stream().record_event())
        del batch  # its memory may be used for the next one, but not before it has been read
    np.testing.assert_array_equal(torch.cat(seen).cpu().numpy(), pictures)
    assert max(ahead) == transfer.AHEAD


def test_resident_memory_does_not_grow_with_the_data_set(tmp_path):
    # 600 MB of images that take no room on the disk; the network is an average.
    code = """
import sys, numpy as np
from medlib import environment
from medlib.core import features, networks
from medlib.core.settings import Extraction
exact = Extraction(precision="float32")
folder, n = sys.argv[1], 4000
np.lib.format.open_memmap(folder + "/images.npy", "w+", np.uint8, (n, 224, 224, 3))
packed = np.load(folder + "/images.npy", mmap_mode="r")
networks.embed = lambda row, model, x: x.mean((2, 3))
features.extract(packed[:200], sys.argv[2], folder + "/few", images_hash="few", settings=exact)
before = environment.peak_memory_bytes()["resident"]
features.extract(packed, sys.argv[2], folder + "/many", images_hash="many", settings=exact)
print(environment.peak_memory_bytes()["resident"] - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path), CNN]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100e6


# --------------------------------------------------------------------------------------- cache


def test_a_cache_that_matches_is_returned_without_running_the_network(tmp_path, monkeypatch):
    pack = make_pack()
    first = extract(pack, CNN, tmp_path / "f")
    forbid_the_network(monkeypatch)
    second = extract(pack, CNN, tmp_path / "f", batch_size=2)
    np.testing.assert_array_equal(second.embeddings, first.embeddings)
    assert second.meta == first.meta


@pytest.mark.parametrize("change", ["image", "label", "backbone", "seed", "version"])
def test_a_cache_is_made_again_when_anything_that_it_depends_on_changes(
    tmp_path, monkeypatch, change
):
    pack, backbone, seed = make_pack(), CNN, 0
    first = extract(pack, backbone, tmp_path / "f")
    before, made_by = np.array(first.embeddings), first.meta["hash"]
    if change == "image":
        pack = make_pack(start=100)
    elif change == "label":
        pack = pack._replace(hash="of other rows")
    elif change == "backbone":
        backbone = "mobilenetv2-random"
    elif change == "seed":
        seed = 1
    else:
        monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    again = extract(pack, backbone, tmp_path / "f", seed=seed)
    assert again.meta["hash"] != made_by
    fresh = extract(pack, backbone, tmp_path / "fresh", seed=seed)
    np.testing.assert_array_equal(again.embeddings, fresh.embeddings)
    same = change in ("label", "version")
    assert (
        again.embeddings.shape == before.shape and np.allclose(again.embeddings, before)
    ) == same
    forbid_the_network(monkeypatch)
    extract(pack, backbone, tmp_path / "f", seed=seed)  # it is the cache now


def test_an_image_size_that_does_not_fit_leaves_nothing_behind(tmp_path):
    pack = make_pack()
    with pytest.raises(ValueError, match="multiple of 14, not 32; the nearest are 28 and 42"):
        extract(pack, "dinov2_small-random", tmp_path / "f")
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("there_was_one", [False, True])
def test_an_interrupted_extraction_is_not_taken_for_a_complete_one(
    tmp_path, monkeypatch, there_was_one
):
    pack = make_pack()
    if there_was_one:
        extract(pack, CNN, tmp_path / "f", seed=5)
    with monkeypatch.context() as patched:
        break_off(patched, call=2)
        with pytest.raises(KeyboardInterrupt):
            extract(pack, CNN, tmp_path / "f", batch_size=2)
    assert not (tmp_path / "f" / "meta.json").exists()
    assert list((tmp_path / "f").glob(".*")) == []
    made = extract(pack, CNN, tmp_path / "f", batch_size=2)
    fresh = extract(pack, CNN, tmp_path / "fresh", batch_size=2)
    np.testing.assert_array_equal(made.embeddings, fresh.embeddings)


def test_an_extraction_that_was_killed_goes_on_after_the_last_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PIECE", 2)
    pack = make_pack(13)
    whole = extract(pack, CNN, tmp_path / "whole", batch_size=2)
    embedded = break_off(monkeypatch, call=6)
    with pytest.raises(KeyboardInterrupt):
        extract(pack, CNN, tmp_path / "f", batch_size=2)
    embedded.clear()
    made = extract(pack, CNN, tmp_path / "f", batch_size=2)
    assert sum(embedded) == 13 - 8  # two pieces of two batches of two were kept
    np.testing.assert_array_equal(made.embeddings, whole.embeddings)
    left = {path.name for path in (tmp_path / "f").iterdir()}
    assert left == {"embeddings.npy", "meta.json"}


def test_what_was_left_of_other_weights_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PIECE", 1)
    pack = make_pack(8)
    with monkeypatch.context() as patched:
        break_off(patched, call=3)
        with pytest.raises(KeyboardInterrupt):
            extract(pack, CNN, tmp_path / "f", batch_size=2, seed=0)
    assert files.read_json(tmp_path / "f" / "progress.json")["done"] == 4
    made = extract(pack, CNN, tmp_path / "f", batch_size=2, seed=1)
    fresh = extract(pack, CNN, tmp_path / "fresh", batch_size=2, seed=1)
    np.testing.assert_array_equal(made.embeddings, fresh.embeddings)


@pytest.mark.parametrize("damage", ["shorter", "zeroed", "no progress", "no array"])
def test_a_damaged_part_of_an_interrupted_extraction_is_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(features, "PIECE", 1)
    pack = make_pack(8)
    with monkeypatch.context() as patched:
        break_off(patched, call=4)
        with pytest.raises(KeyboardInterrupt):
            extract(pack, CNN, tmp_path / "f", batch_size=2)
    partial, progress = tmp_path / "f" / "embeddings.partial.npy", tmp_path / "f" / "progress.json"
    if damage == "shorter":
        os.truncate(partial, partial.stat().st_size // 2)
    elif damage == "zeroed":
        array = np.load(partial, mmap_mode="r+")
        array[3] = 0
        array.flush()
    else:
        {"no progress": progress, "no array": partial}[damage].write_bytes(b"")
    with warnings.catch_warnings(record=True) as told:
        made = extract(pack, CNN, tmp_path / "f", batch_size=2)
    assert any("progress.json is empty" in str(w.message) for w in told) == (
        damage == "no progress"
    )
    fresh = extract(pack, CNN, tmp_path / "fresh", batch_size=2)
    np.testing.assert_array_equal(made.embeddings, fresh.embeddings)


@pytest.mark.parametrize("damage", ["zeroed", "shorter", "gone", "meta"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    pack = make_pack(8)
    whole = np.array(extract(pack, CNN, tmp_path / "f").embeddings)
    file = tmp_path / "f" / ("meta.json" if damage == "meta" else "embeddings.npy")
    content = file.read_bytes()
    half = len(content) // 2
    new = {"zeroed": content[:half] + bytes(len(content) - half), "shorter": content[:half]}
    file.write_bytes(new.get(damage, b""))
    if damage == "gone":
        file.unlink()
    told = "is empty or damaged" if damage == "meta" else "Damaged or missing"
    with pytest.warns(UserWarning, match=told):
        again = extract(pack, CNN, tmp_path / "f")
    np.testing.assert_array_equal(again.embeddings, whole)


def test_a_kill_between_a_piece_and_its_record_mixes_no_embeddings(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PIECE", 1)
    pack = make_pack(8)

    def stopped(seed, after):
        """An extraction that is killed just before it records its piece number ``after``."""
        save, records = files.save_json, []

        def save_json(*args):
            records.append(args)
            if len(records) == after:
                raise KeyboardInterrupt
            save(*args)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(files, "save_json", save_json)
            extract(pack, CNN, tmp_path / "f", batch_size=2, seed=seed)

    stopped(seed=0, after=4)
    stopped(seed=1, after=1)  # now the pieces are of seed 1
    made = extract(pack, CNN, tmp_path / "f", batch_size=2, seed=0)
    fresh = extract(pack, CNN, tmp_path / "fresh", batch_size=2, seed=0)
    np.testing.assert_array_equal(made.embeddings, fresh.embeddings)


def test_embeddings_that_are_not_finite_are_refused_and_not_kept(tmp_path, monkeypatch):
    pack = make_pack()
    embed = networks.embed
    monkeypatch.setattr(networks, "embed", lambda *args: embed(*args) * float("inf"))
    with pytest.raises(FloatingPointError, match=CNN):
        extract(pack, CNN, tmp_path / "f")
    assert not (tmp_path / "f" / "meta.json").exists()
    assert not (tmp_path / "f" / "embeddings.npy").exists()


def test_a_record_with_another_hash_does_not_pass_for_a_cache(tmp_path):
    pack = make_pack()
    extract(pack, CNN, tmp_path / "f")
    meta = files.read_json(tmp_path / "f" / "meta.json")
    files.save_json(tmp_path / "f" / "meta.json", meta | {"hash": ""})
    (tmp_path / "f" / "embeddings.npy").write_bytes(b"")
    assert extract(pack, CNN, tmp_path / "f").embeddings.shape == (7, 96)
