"""medlib.data.embeddings: a pack's embeddings with its index, never those of other images."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medlib import files
from medlib.core import backbones, heads, metrics, networks, weights
from medlib.core.settings import Extraction
from medlib.data import embeddings, manifest, packing, packs
from medlib.stats import prediction

CNN = "micro_resnet-random"
SIZE = 32
ON_CPU = Extraction(device="cpu")


def make_pack(folder, n=7, size=SIZE, interpolation="bilinear"):
    """``n`` PNG files of noise, packed as notebook 01 would."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, pixels in enumerate(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    rows = pd.DataFrame({"sample_id": [f"{i:02d}" for i in range(n)]})
    rows["patient_id"] = rows["sample_id"]
    rows["path"] = [f"{i}.png" for i in range(n)]
    rows["label"] = np.array(["no", "yes"])[np.arange(n) % 2]
    rows["fold"] = np.arange(n) // 2 % 3
    rows["sha256"] = [files.file_sha256(folder / path) for path in rows["path"]]
    made = packing.pack(
        rows, folder, {folder / "pack": packs.Drawn(size, interpolation)}, workers=1
    )
    return made[folder / "pack"]


def test_the_index_is_that_of_the_pack(tmp_path):
    pack = make_pack(tmp_path / "data")
    made = embeddings.extract(pack, CNN, tmp_path / "f")
    pd.testing.assert_frame_equal(made.index, pack.index)
    assert made.index["sample_id"].iloc[0] == "00"


def test_the_index_follows_the_pack_and_the_embeddings_stay(tmp_path):
    pack = make_pack(tmp_path / "data")
    before = np.array(embeddings.extract(pack, CNN, tmp_path / "f").embeddings)
    pack.index.loc[0, "label"] = "yes"
    pack = pack._replace(meta=pack.meta | {"hash": "of other rows"})
    again = embeddings.extract(pack, CNN, tmp_path / "f")
    pd.testing.assert_frame_equal(again.index, pack.index)
    np.testing.assert_array_equal(again.embeddings, before)


@pytest.mark.parametrize("name", ["embeddings.npy", "index.csv"])
def test_damaged_embeddings_or_labels_are_refused(tmp_path, name):
    embeddings.extract(make_pack(tmp_path / "data"), CNN, tmp_path / "f")
    content = (tmp_path / "f" / name).read_bytes()
    (tmp_path / "f" / name).write_bytes(content.replace(b"yes", b"no_") + b" ")
    with pytest.raises(ValueError, match=f"Damaged or missing: .*{name}. Remove the folder"):
        embeddings.load(tmp_path / "f")


@pytest.mark.parametrize("mask", [True, False])
def test_the_meta_says_how_the_images_were_packed(tmp_path, mask):
    pack = make_pack(tmp_path / "data")
    pack = pack._replace(meta=pack.meta | {"mask_at_test_time": mask})
    meta = embeddings.extract(pack, CNN, tmp_path / "f").meta
    assert meta["mask_at_test_time"] is mask and meta["interpolation"] == "bilinear"
    assert meta["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert meta["hardware"]["cpu_count"] and meta["peak_memory_bytes"]["resident"] > 2**20


def test_embeddings_without_their_index_are_not_complete(tmp_path, monkeypatch):
    pack = make_pack(tmp_path / "data")
    expected = embeddings.extract(pack, CNN, tmp_path / "whole")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "save_csv", killed)
        embeddings.extract(pack, CNN, tmp_path / "f")
    with pytest.raises(FileNotFoundError, match="02_extract_features"):
        embeddings.load(tmp_path / "f")
    made = embeddings.extract(pack, CNN, tmp_path / "f")
    pd.testing.assert_frame_equal(made.index, expected.index)
    np.testing.assert_array_equal(made.embeddings, expected.embeddings)
    left = {path.name for path in (tmp_path / "f").iterdir()}
    assert left == {"embeddings.npy", "index.csv", "maps.npz", "meta.json"}


@pytest.mark.parametrize("backbone", [CNN, "vit_tiny-random", "dinov2_small-random"])
def test_what_is_seen_where_is_kept_for_a_few_images_of_each_class(tmp_path, backbone):
    row = backbones.get(backbone)
    size = 56 if row.patch == 14 else SIZE
    pack = make_pack(tmp_path / "data", 12, size, row.preprocessing["interpolation"])
    made = embeddings.extract(pack, backbone, tmp_path / "f", seed=3, settings=ON_CPU)
    found = np.load(tmp_path / "f" / "maps.npz")
    labels = pack.index["label"].to_numpy()[found["rows"]]
    assert labels.tolist() == ["no"] * 4 + ["yes"] * 4 and len(set(found["rows"])) == 8
    maps, whole = found["maps"].astype(float), made.embeddings[found["rows"]]
    d = maps.shape[-1]
    if row.embedding != "cls":
        own = whole[:, -d:]  # for DINOv2, the second half
        np.testing.assert_allclose(maps.mean((1, 2)), own, rtol=0, atol=5e-3 * np.abs(maps).max())
    model, _ = networks.build(backbone, size, seed=3)
    inputs = networks.normalise(row, torch.from_numpy(pack.images[found["rows"]]))
    with torch.inference_mode():
        there = model.eval().forward_features(inputs)
    if there.ndim == 3:  # row by row, behind the class token
        there = there[:, 1:].reshape(8, size // row.patch, size // row.patch, d)
    else:
        there = there.permute(0, 2, 3, 1)
    np.testing.assert_allclose(maps, there, rtol=0, atol=5e-3 * float(there.abs().max()))


def test_embeddings_of_other_images_are_refused(tmp_path):
    pack = make_pack(tmp_path / "data")
    embeddings.extract(pack, CNN, tmp_path / "f")
    assert embeddings.load(tmp_path / "f", pack.meta["hash"]).meta["backbone"] == CNN
    with pytest.raises(ValueError, match="other images.*02_extract_features.*again") as caught:
        embeddings.load(tmp_path / "f", "0123456789abcdef")
    assert str(tmp_path / "f") in str(caught.value)


def test_embeddings_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="02_extract_features") as caught:
        embeddings.load(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)


def test_images_resized_in_another_way_than_the_backbone_wants_are_refused(tmp_path):
    pack = make_pack(tmp_path / "data", interpolation="bicubic")
    with pytest.raises(ValueError) as caught:
        embeddings.extract(pack, CNN, tmp_path / "f")
    for part in (CNN, "bilinear", "bicubic"):
        assert part in str(caught.value)
    assert not (tmp_path / "f").exists()


@pytest.mark.gpu
@pytest.mark.real_data
@pytest.mark.parametrize(
    ("backbone", "precision"),
    [("vit_tiny-imagenet", "float16"), ("mobilenetv2-imagenet", "float32")],
)
def test_real_weights_give_on_a_cuda_device_what_they_give_in_float32_on_a_cpu(
    tmp_path, cuda, real_data, repository, backbone, precision
):
    row = backbones.get(backbone)
    if weights.weights_file(row) is None:
        pytest.skip(f"MEDLIB_WEIGHTS has no {row.timm_name}.safetensors")
    rows = pd.read_csv(repository / "data_manifests" / "fundus_pm.csv", dtype=str)
    interpolation = row.preprocessing["interpolation"]
    packed = packing.pack(rows, real_data, {tmp_path / "p": packs.Drawn(224, interpolation)})[
        tmp_path / "p"
    ]
    here = embeddings.extract(packed, backbone, tmp_path / "cpu", settings=ON_CPU)
    there = embeddings.extract(
        packed, backbone, tmp_path / "cuda", settings=Extraction(device=cuda)
    )
    assert there.meta["precision"] == precision, there.meta["cosine_to_float32"]
    a, b = (torch.from_numpy(np.array(made.embeddings)).double() for made in (here, there))
    assert torch.nn.functional.cosine_similarity(a, b).min() >= 0.999
    areas = [linear_auroc(made, sorted(rows["label"].unique())) for made in (here, there)]
    assert areas[0] == pytest.approx(areas[1], abs=0.002) and areas[0] > 0.98


def linear_auroc(made, classes):
    parts = manifest.rotations(made.index)
    y, samples = metrics.codes(made.index["label"], classes), made.index["sample_id"]
    runs = [("linear", 0, parts)]
    ((_, predicted, *_),) = heads.sweep(made.embeddings, y, samples, runs, n_classes=len(classes))
    found = prediction.tables(made.index, parts, predicted, classes)["predictions.csv"]
    return prediction.point(found, classes)["auroc"]
