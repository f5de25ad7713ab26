"""Phantoms: same seed, same bytes; the real layouts; learnable, but not from thumbnails."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medlib.data import phantoms

TASKS = ("chest", "amd", "pm", "dermoscopy", *phantoms.MODALITIES, "ucsf")
CHEST_NAME = re.compile(
    r"(person\d+)_(?:bacteria|virus)_\d+\.jpeg|((?:NORMAL2-)?IM-\d{4})-0001(?:-\d{4})?\.jpeg"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    for dataset in phantoms.DATASETS:
        assert phantoms.write(dataset, root, scale=0.05) == root / dataset
    return root


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("full")
    for dataset in phantoms.DATASETS:
        phantoms.write(dataset, root)
    return root


def contents(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def chest_patient(path):
    match = CHEST_NAME.fullmatch(path.name)
    assert match, path.name
    return match[1] or match[2]


# ---------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("dataset", phantoms.DATASETS)
def test_the_seed_decides_every_byte(dataset, small, tmp_path):
    first = contents(small / dataset)
    assert contents(phantoms.write(dataset, tmp_path / "same", scale=0.05)) == first
    other = contents(phantoms.write(dataset, tmp_path / "other", scale=0.05, seed=1))
    pictures = {first[name] for name in first if name.endswith(("jpg", "jpeg", "nii.gz"))}
    assert pictures and not pictures & set(other.values())


def test_written_once_and_anew_when_parameters_change(tmp_path):
    folder = phantoms.write("tcga_lgg", str(tmp_path), scale=0.05)
    marker = folder / "marker"
    marker.touch()
    assert phantoms.write("tcga_lgg", tmp_path, scale=0.05) == folder and marker.exists()
    phantoms.write("tcga_lgg", tmp_path, scale=0.05, seed=3)
    assert not marker.exists()
    assert json.loads((tmp_path / "tcga_lgg.json").read_text())["seed"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tcga_lgg", "tcga_lgg.json"]


def test_a_copy_without_its_record_is_not_trusted(tmp_path):
    (tmp_path / "tcga_lgg").mkdir()
    (tmp_path / "tcga_lgg" / "half").touch()
    assert not (phantoms.write("tcga_lgg", tmp_path, scale=0.05) / "half").exists()


def test_the_loser_of_a_race_keeps_the_winners_copy(tmp_path, monkeypatch):
    draw = phantoms.DATASETS["tcga_lgg"]

    def while_another_writes(folder, scale, rng):
        monkeypatch.setitem(phantoms.DATASETS, "tcga_lgg", draw)
        (phantoms.write("tcga_lgg", tmp_path, scale=0.05) / "winner").touch()
        draw(folder, scale, rng)

    monkeypatch.setitem(phantoms.DATASETS, "tcga_lgg", while_another_writes)
    assert (phantoms.write("tcga_lgg", tmp_path, scale=0.05) / "winner").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tcga_lgg", "tcga_lgg.json"]


def test_a_failed_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(folder, scale, rng):
        raise OSError("disk full")

    monkeypatch.setitem(phantoms.DATASETS, "tcga_lgg", fail)
    with pytest.raises(OSError, match="disk full"):
        phantoms.write("tcga_lgg", tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused(tmp_path):
    known = "chest_xray, other_chest, ichallenge_amd, ichallenge_pm, ham10000, tcga_lgg, ucsf_pdgm"
    with pytest.raises(ValueError, match=f"'mnist'.*{known}"):
        phantoms.write("mnist", tmp_path)
    with pytest.raises(ValueError, match="scale 0"):
        phantoms.write("tcga_lgg", tmp_path, scale=0)


# ---------------------------------------------------------------------------------- layouts


def test_chest_layout(full):
    patients = {}
    for split in ("train", "test"):
        for label in ("NORMAL", "PNEUMONIA"):
            paths = sorted((full / "chest_xray" / split / label).iterdir())
            numbers = [chest_patient(p) for p in paths]
            assert Image.open(paths[0]).mode == "L"
            assert (label == "PNEUMONIA") == numbers[0].startswith("person")
            assert 6 <= len(set(numbers)) < len(numbers)  # several images of some patients
            patients[split, label] = set(numbers)
    assert patients["train", "PNEUMONIA"] & patients["test", "PNEUMONIA"]  # numbers restart


def test_of_another_hospital_a_known_share_of_the_labels_says_nothing(tmp_path):
    """Judged by a reader who knows the true class, but not exactly: what he loses is known."""
    write = phantoms._write_other_chest
    for name, shuffled in (("true", 0), ("read", phantoms.SHUFFLED)):
        write(tmp_path / name, 1.5, np.random.default_rng(5), shuffled)
    label_of = {
        name: {p.name: p.parent.name for p in sorted((tmp_path / name).glob("*/p*_0.jpeg"))}
        for name in ("true", "read")
    }
    first = next((tmp_path / "read").glob("*/p001_0.jpeg")).read_bytes()
    assert first == next((tmp_path / "true").glob("*/p001_0.jpeg")).read_bytes()
    true, read = (pd.Series(of).sort_index() for of in label_of.values())
    assert len(true) == 1.5 * sum(phantoms.ELSEWHERE.values()) and list(true.index) == list(
        read.index
    )
    assert true.value_counts().equals(read.value_counts())  # the prevalence stays
    share = (true == "pneumonia").mean()
    changed = phantoms.SHUFFLED * 2 * share * (1 - share)  # of those who get a label at random
    assert (true != read).mean() == pytest.approx(changed, abs=0.05)
    score = (true == "pneumonia") * 1.5 + np.random.default_rng(6).normal(size=len(true))
    area, lower = (roc_auc_score(labels == "pneumonia", score) for labels in (true, read))
    assert lower == pytest.approx(0.5 + (1 - phantoms.SHUFFLED) * (area - 0.5), abs=0.06)
    assert lower < area - 0.04


def test_another_hospital_has_another_scanner_and_is_rarer_ill(full):
    own, other = (sorted((full / name).rglob("*.jpeg")) for name in ("chest_xray", "other_chest"))
    images = [np.stack([np.asarray(Image.open(p)) for p in paths[:60]]) for paths in (own, other)]
    spread = [part[:, 10:-10, 10:-10].std((1, 2)).mean() for part in images]
    assert spread[0] > 1.2 * spread[1]  # less contrast
    assert images[1][:, 0].max() < 20 < images[0][:, 0].max()  # a black border
    ill = np.mean([path.parent.name == "pneumonia" for path in other])
    assert ill < 0.4 < np.mean([path.parent.name == "PNEUMONIA" for path in own])


@pytest.mark.parametrize(
    ("dataset", "name", "kinds"), [("pm", "PALM", "HNP"), ("amd", "AMD", "AN")]
)
def test_fundus_layout(small, dataset, name, kinds):
    folder = small / f"ichallenge_{dataset}"
    training = sorted(p.name for p in (folder / f"{name}-Training400").iterdir())
    assert {name[0] for name in training} == set(kinds)
    labels = pd.read_csv(folder / f"{name}-Validation400" / "labels.csv")
    assert list(labels.columns) == ["imgName", "Label"] and set(labels.Label) == {0, 1}
    photographs = {p.name for p in (folder / f"{name}-Validation400").glob("V*.jpg")}
    assert set(labels.imgName) == photographs
    photo = Image.open(folder / f"{name}-Training400" / training[0])
    assert photo.mode == "RGB" and max(photo.getpixel((1, 1))) < 30  # a dark surround


def test_dermoscopy_layout(small):
    folder = small / "ham10000"
    table = pd.read_csv(folder / "HAM10000_metadata.csv")
    columns = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    assert list(table.columns) == columns and table.image_id.is_unique
    photographs = {p.stem: p for p in folder.glob("HAM10000_images_part_[12]/*.jpg")}
    assert set(table.image_id) == set(photographs)
    assert {p.parent.name[-1] for p in photographs.values()} == {"1", "2"}
    assert (table.groupby("lesion_id").dx.nunique() == 1).all()
    assert table.lesion_id.duplicated().any()
    assert (table.groupby("dx").lesion_id.nunique() >= 6).all() and table.dx.nunique() == 7
    assert all(Image.open(p).size == (128, 96) for p in photographs.values())


def test_on_one_body_part_the_diagnoses_are_shuffled(tmp_path, monkeypatch):
    """A gap between subgroups that is known: no model can tell these lesions apart."""
    drawn = []

    def lesion(rng, dx):
        drawn.append(dx)
        return np.zeros((168, 168, 3), np.float32)

    monkeypatch.setattr(phantoms, "_lesion", lesion)
    folder = phantoms.write("ham10000", tmp_path)
    table = pd.read_csv(folder / "HAM10000_metadata.csv")
    lesions = table.drop_duplicates("lesion_id").sort_values("lesion_id")
    assert len(lesions) == len(drawn)  # ids are numbered in the order of drawing
    guessed = (lesions["localization"] == phantoms.GUESSED).to_numpy()
    true = np.array(drawn)
    assert 50 < guessed.sum() < 110
    assert (lesions["dx"] == true)[~guessed].all()
    assert (lesions["dx"] == true)[guessed].mean() < 0.4
    assert sorted(lesions["dx"][guessed]) == sorted(true[guessed])
    assert (table.groupby("lesion_id").dx.nunique() == 1).all()


def test_glioma_layout(small):
    folder = small / "tcga_lgg"
    table = pd.read_csv(folder / "data.csv", dtype=str, keep_default_na=False)
    assert {"Patient", "gender", "age_at_initial_pathologic"} <= set(table.columns)
    assert sorted(table.neoplasm_histologic_grade.unique()) == ["", "1", "2"]
    assert set(table.Patient) == {p.name for p in folder.iterdir() if p.is_dir()}
    missing = {m: 0 for m in (*phantoms.MODALITIES, "seg")}
    for patient in table.Patient:
        for modality in missing:
            path = folder / patient / f"{patient}_{modality}.nii.gz"
            missing[modality] += not path.exists()
    assert missing == {"t1": 1, "t1ce": 1, "flair": 0, "seg": 0}
    flair = nib.load(folder / patient / f"{patient}_flair.nii.gz")
    mask = nib.load(path)
    assert nib.aff2axcodes(flair.affine) == ("R", "A", "S") and np.all(flair.affine[:3, 3])
    assert flair.shape == mask.shape == (72, 84, 9) and min(flair.header.get_zooms()) > 2
    values, tumour = np.asarray(flair.dataobj), np.asarray(mask.dataobj)
    assert set(np.unique(tumour)) == {0, 1} and tumour[:, :, 2:7].any((0, 1)).all()
    assert values[tumour == 1].mean() > values[(tumour == 0) & (values > 60)].mean()


def test_ucsf_layout(small):
    folder = small / "ucsf_pdgm"
    table = pd.read_csv(folder / "UCSF-PDGM-metadata_v5.csv")
    assert list(table.columns) == ["ID", "Sex", "Age at MRI", "WHO CNS Grade"]
    assert table["WHO CNS Grade"].value_counts().to_dict() == {2: 6, 3: 6, 4: 6}
    cases = [name.replace("PDGM-", "PDGM-0") for name in table.ID]  # 004 in the table is 0004
    assert {f"{case}_nifti" for case in cases} == {p.name for p in folder.iterdir() if p.is_dir()}
    names = {"T1", "T1c", "FLAIR", "tumor_segmentation"}
    for case in cases:
        files = {p.name for p in (folder / f"{case}_nifti").iterdir()}
        assert files == {f"{case}_{name}.nii.gz" for name in names}


# ------------------------------------------------------------------------------ learnability


def load(root, task):
    """Images (list), class, patient and whether it is test, for one task."""
    if task == "chest":
        paths = sorted((root / "chest_xray").rglob("*.jpeg"))
        y = [p.parent.name == "PNEUMONIA" for p in paths]
        patients = [p.parts[-3] + chest_patient(p) for p in paths]
        test = [p.parts[-3] == "test" for p in paths]
        images = [Image.open(p) for p in paths]
    elif task in ("amd", "pm"):
        folder = root / f"ichallenge_{task}"
        (table,) = folder.rglob("labels.csv")
        labels = pd.read_csv(table, index_col=0).Label
        paths = sorted(folder.rglob("*.jpg"))
        y = [p.name[0] == task[0].upper() or bool(labels.get(p.name, 0)) for p in paths]
        patients, test = [p.name for p in paths], [p.name[0] == "V" for p in paths]
        images = [Image.open(p) for p in paths]
    elif task == "dermoscopy":
        table = pd.read_csv(root / "ham10000" / "HAM10000_metadata.csv")
        paths = {p.stem: p for p in (root / "ham10000").rglob("*.jpg")}
        y, patients = table.dx.astype("category").cat.codes, table.lesion_id
        images, test = [Image.open(paths[i]) for i in table.image_id], None
    else:
        if task == "ucsf":
            table = pd.read_csv(root / "ucsf_pdgm" / "UCSF-PDGM-metadata_v5.csv")
            cases = "ucsf_pdgm/" + table["ID"].str.replace("PDGM-", "PDGM-0") + "_nifti"
            grades, ending = table["WHO CNS Grade"] - 2, "T1"
        else:
            table = pd.read_csv(root / "tcga_lgg" / "data.csv").dropna()
            cases = "tcga_lgg/" + table["Patient"]
            grades, ending = table["neoplasm_histologic_grade"].astype(int) - 1, task
        images, y, patients, test = [], [], [], None
        for case, grade in zip(cases, grades, strict=True):
            for path in (root / case).glob(f"*_{ending}.nii.gz"):
                volume = np.asarray(nib.load(path).dataobj)
                images += [Image.fromarray(volume[:, ::-1, z].T) for z in range(2, 7)]
                y += [grade] * 5
                patients += [case] * 5
    y, patients = np.asarray(y, int), np.asarray(patients)
    if test is None:
        folds = StratifiedGroupKFold(3, shuffle=True, random_state=0).split(y, y, patients)
        test = np.isin(np.arange(len(y)), next(folds)[1])
    return images, y, patients, np.asarray(test)


def squash(images, size):
    resized = [im.convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for im in images]
    return np.stack(resized).astype(np.float32) / 255


def auroc(y, p, patients):
    """Macro one-versus-rest AUROC of the patients' mean probabilities."""
    mean = pd.DataFrame(p).assign(y=y).groupby(patients).mean()
    y, p = mean.pop("y").to_numpy(int), mean.to_numpy()
    return np.mean([roc_auc_score(y == k, p[:, k]) for k in np.unique(y)])


def thumbnail_probe(images, y, patients, test):
    x = squash(images, 16).reshape(len(y), -1)
    scores = []
    for c in (1e-3, 1e-2, 1e-1):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200))
        p = probe.fit(x[~test], y[~test]).predict_proba(x[test])
        scores.append(auroc(y[test], p, patients[test]))
    return max(scores)  # chosen on the test set: an upper bound is what is wanted here


def small_network(images, y, patients, test, epochs=10, batch=16, lr=3e-3):
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.from_numpy((squash(images, 56) - 0.5) / 0.25).permute(0, 3, 1, 2).contiguous()
    target, train = torch.from_numpy(y), torch.from_numpy(np.flatnonzero(~test))
    model = timm.create_model("test_resnet", num_classes=int(y.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    steps = epochs * (len(train) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    for _ in range(epochs):
        order = train[torch.randperm(len(train))]
        for rows in order[: len(order) // batch * batch].split(batch):
            flipped = x[rows].flip(3) if torch.rand(()) < 0.5 else x[rows]
            loss = torch.nn.functional.cross_entropy(model(flipped), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        p = model(x[torch.from_numpy(test)]).softmax(1).numpy()
    torch.set_num_threads(threads)
    return auroc(y[test], p, patients[test])


@pytest.mark.parametrize("task", TASKS)
def test_thumbnails_do_not_tell_the_classes_apart(task, full):
    assert thumbnail_probe(*load(full, task)) < 0.95


@pytest.mark.parametrize("task", ("chest", "t1", "ucsf"))
def test_a_small_network_learns_the_classes(task, full):
    data = load(full, task)
    reached = small_network(*data)
    assert reached > 0.97 and reached > thumbnail_probe(*data) + 0.05
