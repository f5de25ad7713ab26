"""The card of a saved model, in Markdown, under the headings of Hugging Face's model cards.

Everything in it comes from the model's facts, its task's card and the run's metrics. What they do
not state is marked :data:`UNKNOWN`; nothing is made up.
"""

from collections.abc import Mapping

UNKNOWN = "not stated in the card"
HEADS = {"linear": "L2-regularised logistic regression", "knn": "k nearest neighbours"}
HEADS |= {"mlp": "an MLP with 256 hidden units"}
REGIMES = {"finetuned": "all weights fine-tuned", "lora": "LoRA: low-rank additions to the weights"}
# The metrics that are printed, in this order, if the run has them.
METRICS = ("auroc", "auprc", "accuracy", "balanced_accuracy", "f1_weighted", "log_loss", "ece")


def text(facts: dict, metrics: Mapping[str, float]) -> str:
    """The card of the model whose ``model.json`` holds ``facts``; ``metrics`` are on its test."""
    card, run = facts["card"], facts["run"]
    sections = {
        f"Model Card for {card['title']}": _summary(facts),
        "Model Details": _details(facts),
        "Uses": _uses(facts),
        "Bias, Risks, and Limitations": _limits(facts),
        "How to Get Started with the Model": _start(run),
        "Training Details": _training(facts),
        "Evaluation": _evaluation(facts, metrics),
        "Environmental Impact": "Seconds and hardware are in the run's `run.json`.",
        "Technical Specifications": _technical(facts),
        "Citation": f"Data: {_stated(card['citation'])}",
        "Model Card Contact": UNKNOWN,
    }
    (title, summary), *others = sections.items()
    parts = [f"# {title}", summary]
    for name, words in others:
        parts += [f"## {name}", words]
    return "\n\n".join(parts) + "\n"


def _stated(value: object) -> str:
    return str(value).strip() if value not in (None, "", [], {}) else UNKNOWN


def _listed(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- **{name}:** {_stated(value)}" for name, value in facts.items())


def _table(columns: list[str], rows: list[list]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _head(facts: dict) -> str:
    run = facts["run"]
    frozen = f"frozen, with {HEADS[run['head']]} on its embedding"
    return frozen if run["regime"] == "frozen" else f"{REGIMES[run['regime']]}, linear head"


def _several(facts: dict) -> bool:
    return len(facts["rotations"]) > 1


def _summary(facts: dict) -> str:
    row, classes = facts["backbone"], ", ".join(facts["classes"])
    words = f"It classifies one {facts['card']['modality']} as one of: {classes}. "
    words += f"Backbone {row['printed']} ({row['pretraining']} weights), {_head(facts)}."
    if row["pretraining"] == "random":
        words += " Its backbone has random weights: it is a control, and not for use."
    if row["pretraining"] == "phantoms":
        words += " Its backbone has learned drawn textures only: it is for demonstration only."
    return words


def _details(facts: dict) -> str:
    row, card, run = facts["backbone"], facts["card"], facts["run"]
    n = len(facts["rotations"])
    kind = f"an ensemble of {n} models, one for each fold" if _several(facts) else "one model"
    return _listed(
        {
            "Model type": f"image classifier; {kind}",
            "Backbone": f"{run['backbone']} ({row['timm_name']}), {_head(facts)}",
            "Weights of the backbone": f"sha256 {facts['weights_digest']}",
            "Licence of the backbone's weights": row["licence"],
            "Licence of the data": card["licence"],
            "Developed by": "",
            "Made with": f"medlib {facts['versions'].get('medlib') or UNKNOWN}",
        }
    )


def _uses(facts: dict) -> str:
    direct = "Research: to predict new images of the same kind, and to test them elsewhere."
    out = "Diagnosis, triage or any other decision about a patient. It is no medical device. "
    out += "Images of another kind than its training images: predictions mark an image as unusual "
    out += "if its embedding is farther from those of the training images than 95 % of the "
    out += "validation images are. An image that is not marked may still be unlike them."
    return f"### Direct Use\n\n{direct}\n\n### Out-of-Scope Use\n\n{out}"


def _limits(facts: dict) -> str:
    words = (
        "The metrics below are of patients of its own data set. Tests on other data sets, if there "
    )
    words += f"are any, are in `external_{facts['run']['task']}` of its grid."
    lines = [words, _notes(facts)]
    if _several(facts):
        words = "Each fold's model was tested on patients that it had not seen. The ensemble, the "
        words += "mean of their probabilities, was never tested: all patients are in its training."
        lines.append(words)
    if facts["mask_at_test_time"]:
        lines.append("It needs a mask of the tumour for every new volume.")
    if facts["run"]["head"] == "knn":
        lines.append(
            "It holds the embeddings of its training patients: share it as you share their data."
        )
    if facts["card"]["volumes"]:
        lines.append("A volume's probabilities are the mean over its slices.")
    task = facts["run"]["task"]
    lines.append(
        f"Metrics by age, sex and site are not in this card: see `subgroups_{task}` of its grid."
    )
    return "\n".join(f"- {line}" for line in lines)


def _notes(facts: dict) -> str:
    return f"Notes on the data: {_stated(' '.join(facts['card']['notes'].split()))}"


def _start(run: dict) -> str:
    command = "python -m medlib.predict THIS_FOLDER FOLDER_OF_IMAGES --out predictions.csv"
    words = "Its weights are not in this folder: `MEDLIB_WEIGHTS` names the folder that has them."
    if run["backbone"].partition("@")[0].endswith("-random"):
        words = "The backbone's random weights are drawn again from their seed."
    return f"```sh\n{command}\n```\n\n{words}"


def _training(facts: dict) -> str:
    card, run = facts["card"], facts["run"]
    rows = []
    for rotation in facts["rotations"]:
        for side, counts in rotation["patients_and_images"].items():
            of_classes = (counts.get(label, [0, 0]) for label in facts["classes"])
            cells = [f"{patients:,} / {images:,}" for patients, images in of_classes]
            rows.append([rotation["fold"], side, *cells])
    table = _table(["fold", "side", *facts["classes"]], rows)
    data = {"Source": card["source"], "Split": card["split"]}
    data |= {"Share of the labels": run["label_fraction"], "Seed": run["seed"]}
    data |= {"Manifest": f"sha256 {facts['manifest_sha256']}"}
    words = "Patients / images (slices of volumes) by class:"
    return f"### Training Data\n\n{_listed(data)}\n\n{words}\n\n{table}"


def _evaluation(facts: dict, metrics: Mapping[str, float]) -> str:
    known = {name: metrics[name] for name in METRICS if metrics.get(name) is not None}
    rows = [[name, f"{value:.3f}"] for name, value in known.items() if value == value]
    how = "On the official test set."
    if _several(facts):
        how = "Means over folds, weighted by their test patients. Each fold's model is tested on "
        how += "its own test patients. The ensemble itself was not tested."
    how += " These are point values; intervals are in the study's tables."
    chosen = [
        [rotation["fold"], t["class"], _rule(t), f"{t['threshold']:.3f}"]
        for rotation in facts["rotations"]
        for t in rotation["thresholds"]
    ]
    thresholds = _table(["fold", "class", "rule", "threshold"], chosen)
    heated = [[r["fold"], f"{r['temperature']:.3f}"] for r in facts["rotations"]]
    temperatures = _table(["fold", "temperature"], heated)
    words = "Thresholds and temperatures, chosen on validation patients:"
    results = _table(["metric", "value"], rows) if rows else UNKNOWN
    return f"{how}\n\n{results}\n\n{words}\n\n{thresholds}\n\n{temperatures}"


def _rule(threshold: dict) -> str:
    aim = threshold["aim"]
    return threshold["rule"] + (f" ≥ {aim:g}" if aim is not None else "")


def _technical(facts: dict) -> str:
    card = facts["card"]
    volumes = ", ".join(f"{n} {v}" for n, v in (card["volumes"] or {}).items() if _told(v))
    scale = facts["normalisation"]
    return _listed(
        {
            "Image size": f"{facts['image_size']} px ({facts['geometry']})",
            "Interpolation": facts["interpolation"],
            "Normalisation": f"mean {scale['mean']}, standard deviation {scale['std']}",
            "Embedding": facts["backbone"]["embedding"],
            "Grey values": card["grey_values"] or "8-bit values as they are, deeper ones stretched",
            "Volumes": volumes or "none: the samples are images",
            "Precision": facts["precision"],
        }
    )


def _told(value: object) -> bool:
    return value not in (None, "", False)
