"""medlib.stats.diagnostics: curves, matrices and bins of scikit-learn, and bands over patients."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from medlib.stats import bootstrap, diagnostics, draws, prediction


def frame(k, n=80, seed=0, per_patient=1):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    proba = np.round(0.6 * rng.dirichlet(np.ones(k), n) + 0.4 * np.eye(k)[y], 2)
    proba /= proba.sum(1, keepdims=True)
    ids = [f"{i:04d}" for i in range(n)]
    patients = [f"p{i // per_patient}" for i in range(n)]
    rows = pd.DataFrame({"sample_id": ids, "patient_id": patients})
    rows["y_true"] = [f"c{c}" for c in y]
    rows[[f"prob_c{c}" for c in range(k)]] = proba
    return rows, [f"c{c}" for c in range(k)]


@pytest.mark.parametrize("k", [2, 4])
def test_curves_go_through_the_points_of_scikit_learn(k):
    rows, classes = frame(k)
    drawn = diagnostics.roc_and_pr([rows], classes, resamples=20)
    rates, ranked = diagnostics.RATES, classes[1:] if k == 2 else classes
    sensitivity, precision = np.zeros(len(rates)), np.zeros(len(rates))
    for name in ranked:
        truth, score = rows["y_true"] == name, rows[f"prob_{name}"]
        x, y, _ = sk.roc_curve(truth, score, drop_intermediate=False)
        upper = pd.Series(y).groupby(x).max()  # at a vertical step: its upper end
        sensitivity += np.interp(rates, upper.index, upper) / len(ranked)
        p, r, _ = sk.precision_recall_curve(truth, score)
        # by falling threshold: the precision at the first threshold that reaches the recall
        p, r = p[-2::-1], r[-2::-1]
        precision += np.array([p[np.argmax(r >= max(at, 1e-12))] for at in rates]) / len(ranked)
    roc, pr = (drawn[drawn["curve"] == kind] for kind in ("roc", "pr"))
    inside = ~np.isin(rates, [0, 1])
    np.testing.assert_allclose(roc["x"], rates)
    np.testing.assert_allclose(pr["y"], precision, rtol=0, atol=1e-12)
    # scikit-learn's curve may have several points at one x: the upper one counts
    close = np.abs(roc["y"].to_numpy() - sensitivity) < 1e-12
    assert close[inside].mean() > 0.9 and np.abs(roc["y"] - sensitivity).max() < 0.1


def test_the_area_under_the_drawn_curves_is_that_of_the_metric():
    rows, classes = frame(3, n=400, seed=3)
    drawn = diagnostics.roc_and_pr([rows], classes, resamples=5)
    expected = prediction.point(rows, classes)
    for kind, name in (("roc", "auroc"), ("pr", "auprc")):
        part = drawn[drawn["curve"] == kind]
        assert np.trapezoid(part["y"], part["x"]) == pytest.approx(expected[name], abs=0.01)


def test_bands_hold_the_curve_and_do_not_widen_where_a_patients_images_are_unrelated():
    wide, narrow = (
        diagnostics.roc_and_pr([frame(2, 240, per_patient=p)[0]], ["c0", "c1"], 300)
        for p in (12, 1)
    )
    for drawn in (wide, narrow):
        middle = drawn[(drawn["x"] > 0.05) & (drawn["x"] < 0.95)]
        assert ((middle["low"] <= middle["y"]) & (middle["y"] <= middle["high"])).mean() > 0.97
        assert drawn["low"].notna().all()
    ratio = (wide["high"] - wide["low"]).mean() / (narrow["high"] - narrow["low"]).mean()
    assert ratio == pytest.approx(1, abs=0.35)  # the images of a patient are independent here


@pytest.mark.parametrize("draw", [diagnostics.roc_and_pr, diagnostics.reliability])
def test_copies_of_an_image_do_not_narrow_the_bands_of_their_patients(draw):
    rows, classes = frame(3, n=60)
    copies = [rows.assign(sample_id=rows["sample_id"] + letter) for letter in "abcdefgh"]
    copies = pd.concat(copies, ignore_index=True)
    single, eight = draw([rows], classes, 200), draw([copies], classes, 200)
    columns = ["low", "high"]
    np.testing.assert_allclose(eight[columns], single[columns], rtol=0, atol=1e-12)
    by_image = draw([copies.assign(patient_id=copies["sample_id"])], classes, 200)
    width, narrow = ((table["high"] - table["low"]).mean() for table in (eight, by_image))
    assert width > 2 * narrow  # if images are drawn, bands are too narrow by a factor of sqrt(8)


def test_seeds_are_averaged_whatever_the_order_of_their_rows():
    rows, classes = frame(2)
    other = frame(2, seed=1)[0].assign(y_true=rows["y_true"])
    both = diagnostics.roc_and_pr([rows, other.sample(frac=1, random_state=0)], classes, 10)
    each = [diagnostics.roc_and_pr([f], classes, 10)["y"] for f in (rows, other)]
    np.testing.assert_allclose(both["y"], sum(each) / 2)
    counts = diagnostics.confusion([rows, other], classes)["count"]
    single = [diagnostics.confusion([f], classes)["count"] for f in (rows, other)]
    np.testing.assert_allclose(counts, sum(single) / 2)


def test_confusion_is_that_of_scikit_learn():
    rows, classes = frame(4)
    confusion = diagnostics.confusion([rows], classes)
    called = [classes[i] for i in rows[[f"prob_{c}" for c in classes]].to_numpy().argmax(1)]
    expected = sk.confusion_matrix(rows["y_true"], called, labels=classes)
    table = confusion.pivot(index="label", columns="called", values="count").loc[classes, classes]
    np.testing.assert_array_equal(table, expected)


def rates_by_sklearn(rows, classes, name, weights=None):
    """AUROC, sensitivity and specificity of one class against the rest, with sample weights."""
    own = (rows["y_true"] == name).to_numpy()
    proba = rows[[f"prob_{c}" for c in classes]].to_numpy()
    called = np.array(classes)[proba.argmax(1)] == name
    weighted = {"sample_weight": weights}
    return [
        sk.roc_auc_score(own, rows[f"prob_{name}"], **weighted),
        sk.recall_score(own, called, **weighted),
        sk.recall_score(~own, ~called, **weighted),
    ]


@pytest.mark.parametrize("k", [2, 4])
def test_each_class_against_the_rest_is_that_of_scikit_learn(k):
    rows, classes = frame(k)
    table = diagnostics.by_class([rows], classes, resamples=50)
    expected = np.array([rates_by_sklearn(rows, classes, name) for name in classes])
    assert table["metric"].tolist() == ["auroc", "sensitivity", "specificity"] * k
    np.testing.assert_allclose(table["value"], expected.ravel(), atol=1e-12)
    assert table["n_patients"].tolist() == [80 // k] * 3 * k
    inside = (table["ci_low"] < table["value"]) & (table["value"] <= table["ci_high"])
    assert inside.all() and (table["ci_high"] <= 1).all()


def test_in_cross_validation_each_class_has_the_mean_over_folds_by_their_patients():
    rows, classes = frame(3, per_patient=2)
    # Patients are split into folds of 10, 12 and 18. The last fold lacks the first class.
    patient = rows["patient_id"].str[1:].astype(int)
    rows["fold"] = np.digitize(patient, [10, 22])
    rows = rows[(rows["fold"] < 2) | (rows["y_true"] != "c0")]
    last = rows.loc[rows["fold"] == 2, "patient_id"].nunique()
    table = diagnostics.by_class([rows], classes, resamples=20).set_index(["label", "metric"])
    for name in classes:
        parts = [rows[rows["fold"] == fold] for fold in range(3)]
        if name == "c0":  # the last fold has no AUROC and no sensitivity of this class
            parts = parts[:2]
        sizes = [10, 12, last][: len(parts)]
        values = [rates_by_sklearn(part, classes, name) for part in parts]
        area, sensitivity, specificity = np.average(values, axis=0, weights=sizes)
        if name == "c0":
            called = rows[rows["fold"] == 2][[f"prob_{c}" for c in classes]].to_numpy().argmax(1)
            each = [*(value[2] for value in values), (called != 0).mean()]
            specificity = np.average(each, weights=[10, 12, last])
        found = table.loc[name, "value"]
        np.testing.assert_allclose(found, [area, sensitivity, specificity], atol=1e-12)


def test_intervals_of_a_class_are_those_of_the_same_draws_of_patients():
    rows, classes = frame(3, per_patient=2)
    table = diagnostics.by_class([rows], classes, resamples=60).set_index(["label", "metric"])
    owner, patients = pd.factorize(rows["patient_id"], sort=True)
    counts = draws.counts(patients, 0, 60)[:, owner]
    drawn = np.array([rates_by_sklearn(rows, classes, "c1", weights) for weights in counts])
    n = rows.loc[rows["y_true"] == "c1", "patient_id"].nunique()
    assert table.loc["c1", "n_patients"].tolist() == [n] * 3
    values = rates_by_sklearn(rows, classes, "c1")
    for metric, value, error in zip(
        ("auroc", "sensitivity", "specificity"), values, drawn.std(0, ddof=1), strict=True
    ):
        # The logit interval: logit(value) ± 1.96 standard errors on that scale.
        half = bootstrap.Z * error / (value * (1 - value))
        ends = 1 / (1 + np.exp(-(np.log(value / (1 - value)) + np.array([-half, half]))))
        np.testing.assert_allclose(
            table.loc[("c1", metric), ["ci_low", "ci_high"]], ends, rtol=1e-9
        )


def test_seeds_of_a_class_are_averaged_and_a_class_that_is_always_found_has_wilsons_interval():
    labels, proba = ["c0", "c0", "c1", "c1"], np.array([0.9, 0.8, 0.2, 0.6])
    ids = {"sample_id": list("abcd"), "patient_id": list("abcd"), "split": "test"}
    one = pd.DataFrame(ids | {"y_true": labels, "prob_c0": proba, "prob_c1": 1 - proba})
    other = one.assign(prob_c0=[0.4, 0.8, 0.2, 0.3], prob_c1=[0.6, 0.2, 0.8, 0.7])
    table = diagnostics.by_class([one, other], ["c0", "c1"], 40).set_index(["label", "metric"])
    # The first seed is right on both c0 and on one of two c1, the second on one of two c0 and
    # on both c1.
    assert table.loc[("c0", "sensitivity"), "value"] == pytest.approx(0.75)
    assert table.loc[("c1", "sensitivity"), "value"] == pytest.approx(0.75)
    whole = diagnostics.by_class([one], ["c0", "c1"], 40).set_index(["label", "metric"])
    found = whole.loc[("c0", "sensitivity")]
    assert found["value"] == 1 and found["ci_high"] == 1
    assert found["ci_low"] == pytest.approx(2 / (2 + bootstrap.Z**2))  # Wilson's, two patients


def test_a_class_that_the_test_set_lacks_has_no_values():
    rows, _ = frame(2)
    table = diagnostics.by_class([rows.assign(prob_c2=0.0)], ["c0", "c1", "c2"], resamples=20)
    absent = table[table["label"] == "c2"].set_index("metric")
    assert absent["n_patients"].tolist() == [0] * 3
    assert (
        absent.loc[["auroc", "sensitivity"], ["value", "ci_low", "ci_high"]].isna().all(axis=None)
    )
    assert absent.loc["specificity", "value"] == 1


def test_reliability_is_that_of_scikit_learn_bin_by_bin():
    rows, classes = frame(3, n=300)
    columns = [f"prob_{c}" for c in classes]
    rows[columns] = 0.99 * rows[columns] + 0.0033  # no confidence is at the edge of a bin
    bins = diagnostics.reliability([rows], classes, 200)
    proba = rows[[f"prob_{c}" for c in classes]].to_numpy()
    right = np.array(classes)[proba.argmax(1)] == rows["y_true"]
    share, confidence = calibration_curve(right, proba.max(1), n_bins=10)
    np.testing.assert_allclose(bins["accuracy"], share)
    np.testing.assert_allclose(bins["confidence"], confidence)
    assert bins["count"].sum() == 300
    full = bins[(bins["count"] > 20) & (bins["accuracy"] < 1)]
    assert len(full) >= 2
    assert ((full["low"] < full["accuracy"]) & (full["accuracy"] < full["high"])).all()
    gap = (bins["count"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / 300
    assert gap == pytest.approx(prediction.point(rows, classes)["ece"], abs=0.05)


def test_the_bands_of_reliability_are_percentiles_over_draws_of_patients():
    rows, classes = frame(2, n=120, per_patient=3)
    bins = diagnostics.reliability([rows.sample(frac=1, random_state=0)], classes, 150)
    patients = sorted(set(rows["patient_id"]))
    counts = pd.DataFrame(draws.counts(patients, 0, 150), columns=patients)
    weights = counts[rows["patient_id"]].to_numpy().astype(int)
    proba = rows[["prob_c0", "prob_c1"]].to_numpy()
    right = (np.array(classes)[proba.argmax(1)] == rows["y_true"]).to_numpy()
    bin_of = np.ceil(proba.max(1) * 10 - 1e-12).astype(int)
    for row, number in zip(bins.to_dict("records"), np.unique(bin_of), strict=True):
        members = bin_of == number
        inside, hits = weights[:, members].sum(1), weights[:, members & right].sum(1)
        values = hits[inside > 0] / inside[inside > 0]
        assert row["count"] == members.sum()
        assert (row["low"], row["high"]) == pytest.approx(
            tuple(np.quantile(values, [0.025, 0.975]))
        )


def test_the_released_codes_interval_is_seventy_times_too_narrow():
    n, right = 624, round(0.85 * 624)
    label = np.arange(n) % 2
    called = np.where(np.arange(n) < right, label, 1 - label)
    rows = pd.DataFrame({"sample_id": [f"{i:03d}" for i in range(n)]})
    rows["patient_id"] = rows["sample_id"]
    rows["y_true"] = np.array(["c0", "c1"])[label]
    rows["prob_c0"], rows["prob_c1"] = 1.0 * (called == 0), 1.0 * (called == 1)
    widths = diagnostics.interval_widths(rows, ["c0", "c1"]).set_index("way")
    width = widths["ci_high"] - widths["ci_low"]
    exact = 2 * 1.96 * np.sqrt(0.85 * 0.15 / n)
    assert width["images"] == width["patients"] == pytest.approx(exact, rel=0.05)
    assert widths.loc["means of bootstrap values", "ratio"] == pytest.approx(70.7, rel=0.12)
    rows["patient_id"] = [f"{i // 8:03d}" for i in np.argsort(called == label, kind="stable")]
    clustered = diagnostics.interval_widths(rows, ["c0", "c1"]).set_index("way")
    assert clustered.loc["images", "ratio"] > 1.5


def test_colours_are_the_joint_principal_components_of_all_places():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 4, 5, 6)) * [5, 3, 2, 0.1, 0.1, 0.1]
    colours = diagnostics.principal_colours(maps)
    assert colours.shape == (3, 4, 5, 3) and colours.min() == 0 and colours.max() == 1
    expected = PCA(3).fit_transform(maps.reshape(-1, 6))
    for i in range(3):
        assert abs(np.corrcoef(colours.reshape(-1, 3)[:, i], expected[:, i])[0, 1]) > 0.99
    assert diagnostics.principal_colours(maps[..., :2]).shape == (3, 4, 5, 3)


@pytest.mark.parametrize("k", [2, 3])
def test_evidence_lies_where_the_class_is_and_adds_up_to_the_heads_logit(k):
    rng = np.random.default_rng(1)
    y = np.arange(60) % k
    maps = rng.normal(size=(60, 4, 4, 5))
    maps[np.arange(60), 1, 2, y] += 30  # one feature for each class, in one place
    embeddings = maps.mean((1, 2))
    names = np.array(["a", "b", "c"])[y]
    evidence = diagnostics.class_activation(maps[:6], embeddings, names, names[:6])
    assert all(np.unravel_index(m.argmax(), m.shape) == (1, 2) for m in evidence)
    against = diagnostics.class_activation(maps[:1], embeddings, names, ["b"])
    assert against[0, 1, 2] < 0 < evidence[0, 1, 2]
    scaled = (embeddings - embeddings.mean(0)) / embeddings.std(0)
    head = LogisticRegression(C=0.1, max_iter=200).fit(scaled, names)
    logits = scaled @ head.coef_.T
    own = logits[:6, 0] * np.where(y[:6] == 1, 1, -1) if k == 2 else logits[range(6), y[:6]]
    np.testing.assert_allclose(evidence.mean((1, 2)), own, rtol=1e-6)
