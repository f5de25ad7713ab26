"""Predict new images with the model of a finished run.

    python -m medlib.predict MODEL FOLDER_OR_CARD --out predictions.csv

MODEL is the folder of a run, or a folder with copies of its model.safetensors and model.json.
"""

import argparse
import sys

from medlib.grid import new_images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("model", help="a run's folder, or a folder with copies of its model.* files")
    add("source", help="a folder of images or volumes; or a task, or the file of its card")
    add("--out", required=True, help="the CSV to write: a row for each sample")
    add("--rule", default="likeliest", choices=new_images.RULES, help="how a class is chosen")
    add("--data", default="", help="with a card: the folder of data sets (default: MEDLIB_DATA)")
    add("--quarantine", action="store_true", help="leave out files that cannot be read; list them")
    add("--device", default="auto", help="cuda, cpu, or auto: cuda where there is one")
    return new_images.main(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
