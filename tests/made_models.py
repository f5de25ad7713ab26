"""Finished runs with models, on phantoms: what tests of models share."""

from dataclasses import asdict

import pandas as pd

from medlib import files
from medlib.core import finetune, metrics
from medlib.core.fast.resume import Kept
from medlib.core.settings import FineTuning
from medlib.data import cards, embeddings, manifest, packs, phantoms, preparation
from medlib.grid import address, models, probes, records
from medlib.grid.address import Address
from medlib.stats import prediction

NET, SIZE = "micro_resnet-random", 32
SETTINGS = FineTuning(learning_rates=(0.001, 0.003), epochs=1, lora_rank=2)


class Study:
    """A results folder with phantoms, packed and embedded as notebooks 01 to 04 do it."""

    def __init__(self, results):
        self.results, self.data = results, results / "phantoms"

    def prepare(self, task, sizes=(SIZE,), **settings):
        card = cards.read(task).with_settings(**settings, phantoms=True)
        phantoms.write(card.folder, self.data, scale=0.12)
        self.pack_again(task, card, sizes)
        files.save_json(address.seeds(self.results, task), {"phantoms": 0, "split": 0})

    def pack_again(self, task, card, sizes=(SIZE,)):
        """The manifest and the packs of a task, from its folder as it is now."""
        place = address.pack
        how = {place(self.results, task, s, "bilinear"): packs.Drawn(s, "bilinear") for s in sizes}
        made = preparation.prepare(card, self.data, folders=how, workers=1)
        manifest.write(made.rows, made.excluded, address.manifest(self.results, task), card)

    def card(self, task):
        return cards.used(address.manifest(self.results, task))

    def pack(self, task):
        return packs.load(address.pack(self.results, task, SIZE, "bilinear"))

    def probe(self, task, heads=("linear", "knn", "mlp"), **how):
        folder = address.features(self.results, task, NET)
        made = embeddings.extract(self.pack(task), NET, folder)
        classes = manifest.classes(made.index, self.card(task))
        runs = [Address(task, NET, "frozen", head) for head in heads]
        return probes.fit(runs, {0: made}, classes, self.results, image_size=SIZE, **how)

    def tune(self, task, regime, saved=True):
        """Fine-tune as notebook 04 does."""
        pack, run = self.pack(task), Address(task, NET, regime)
        index, classes = pack.index, manifest.classes(pack.index, self.card(task))
        rotations, samples = manifest.rotations(index), index["sample_id"].to_numpy()
        y = metrics.codes(index["label"], classes)
        data = finetune.Data(pack.images, y, samples, len(classes), pack.meta["hash"])
        kept = Kept(run.folder(self.results) / records.CHECKPOINT, models=saved)
        asked = NET, data, rotations, SETTINGS
        predicted, history, how = finetune.run(*asked, regime=regime, device="cpu", kept=kept)
        tables, history = (
            prediction.tables(index, rotations, predicted, classes),
            pd.DataFrame(history),
        )
        parts = (index, rotations), (kept, history, how), tables["validation.csv"], self.results
        model = models.of_training(run, pack, *parts, SETTINGS) if saved else None
        made = records.Provenance("random", asdict(SETTINGS), {}, 1.0, how)
        records.save_run(run, self.results, made, tables, history, {"auroc": 0.5}, model)
        return run
