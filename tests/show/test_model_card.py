"""The card of a saved model states what is known, under the usual headings, and nothing else."""

import copy
import re

import pytest

from medlib.show import model_card

CARD = {"title": "Toy", "modality": "drawing", "licence": "CC0", "citation": "nobody, 2020"}
CARD |= {"source": "a shelf", "split": "cross-validation", "notes": "", "volumes": None}
CARD |= {"grey_values": ""}
RUN = {"backbone": "net-imagenet", "regime": "frozen", "head": "linear", "label_fraction": 0.5}
RUN |= {"task": "toy", "seed": 3}
ROW = {"printed": "Net", "pretraining": "imagenet", "timm_name": "net.a1", "embedding": "gap"}
ROW |= {"licence": "MIT"}
COUNTS = {"train": {"a": [8, 80], "b": [9, 90]}, "val": {"a": [3, 30], "b": [4, 40]}}
COUNTS |= {"test": {"b": [5, 50]}}
CHOSEN = [
    {"class": "b", "rule": "Youden", "aim": None, "threshold": 0.25},
    {"class": "b", "rule": "sensitivity", "aim": 0.95, "threshold": 0.125},
]
ROTATION = {"fold": 0, "patients_and_images": COUNTS, "thresholds": CHOSEN, "temperature": 1.5}
FACTS = {"card": CARD, "run": RUN, "backbone": ROW, "classes": ["a", "b"], "rotations": [ROTATION]}
FACTS |= {"weights_digest": "f" * 64, "manifest_sha256": "e" * 64, "versions": {"medlib": "1.2"}}
FACTS |= {"normalisation": {"mean": [0.5] * 3, "std": [0.25] * 3}, "image_size": 224}
FACTS |= {"geometry": "squash", "interpolation": "bicubic", "precision": "float16"}
FACTS |= {"mask_at_test_time": False}
METRICS = {"auroc": 0.8766, "accuracy": 0.5, "log_loss": float("nan"), "kappa": 0.1}
# https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/templates
HEADINGS = ["Model Details", "Uses", "Bias, Risks, and Limitations"]
HEADINGS += ["How to Get Started with the Model", "Training Details", "Evaluation"]
HEADINGS += ["Environmental Impact", "Technical Specifications", "Citation", "Model Card Contact"]


def changed(**parts):
    facts = copy.deepcopy(FACTS)
    for name, of in parts.items():
        facts[name] = facts[name] | of if isinstance(of, dict) else of
    return facts


def test_it_has_the_headings_of_hugging_faces_cards_in_their_order():
    text = model_card.text(FACTS, METRICS)
    assert text.startswith("# Model Card for Toy\n")
    assert re.findall("^## (.*)$", text, re.M) == HEADINGS


def test_it_holds_what_is_known():
    text = model_card.text(FACTS, METRICS)
    for words in (
        "| auroc | 0.877 |",
        "| accuracy | 0.500 |",
        "| 0 | train | 8 / 80 | 9 / 90 |",
        "| 0 | test | 0 / 0 | 5 / 50 |",
        "| 0 | b | sensitivity ≥ 0.95 | 0.125 |",
        "| 0 | b | Youden | 0.250 |",
        "| 0 | 1.500 |",
        "**Licence of the data:** CC0",
        "**Licence of the backbone's weights:** MIT",
        "nobody, 2020",
        "medlib 1.2",
        "Share of the labels:** 0.5",
        "MEDLIB_WEIGHTS",
        "224 px (squash)",
        "f" * 64,
    ):
        assert words in text, words
    assert "log_loss" not in text and "ensemble" not in text and "control" not in text


@pytest.mark.parametrize(
    "facts",
    [
        FACTS,
        changed(card={"citation": "", "licence": None, "notes": None or "", "source": ""}),
        changed(versions={"medlib": None}),
        changed(card={"volumes": {"slices": 3, "crop_margin": None, "choice": "central"}}),
        changed(card={"grey_values": [0, 255]}, run={"regime": "lora"}),
    ],
)
def test_what_is_not_known_says_so_and_nothing_is_none(facts):
    for metrics in (METRICS, {}, {"auroc": None}):
        text = model_card.text(facts, metrics)
        assert "None" not in text and "nan" not in text
        assert "**Developed by:** not stated in the card" in text


def test_an_ensemble_says_that_it_was_never_tested_and_a_control_that_it_is_one():
    text = model_card.text(changed(rotations=[ROTATION, ROTATION | {"fold": 1}]), METRICS)
    assert "an ensemble of 2 models" in text and text.count("not tested") == 1
    assert "was never tested" in text
    text = model_card.text(
        changed(backbone={"pretraining": "random"}, run={"backbone": "net-random@56"}), METRICS
    )
    assert "is a control, and not for use" in text and "MEDLIB_WEIGHTS" not in text


def test_a_knn_says_that_it_holds_embeddings_of_patients():
    words = "It holds the embeddings of its training patients"
    assert words in model_card.text(changed(run={"head": "knn"}), METRICS)
    assert words not in model_card.text(FACTS, METRICS)


def test_a_mask_that_is_needed_is_named():
    assert "needs a mask" in model_card.text(changed(mask_at_test_time=True), METRICS)
