"""Fetch pretrained weights, inspect a file of weights, and convert it for a row of backbones.yaml.

    python -m medlib.zoo.weights fetch ROW [ROW …] [--to FOLDER]
    python -m medlib.zoo.weights inspect FILE
    python -m medlib.zoo.weights convert FILE ROW [--to FOLDER]

``fetch`` downloads the weights of rows. ``inspect`` prints what a file holds and which rows can use
it. ``convert`` writes the tensors of a row's network into ``<timm_name>.safetensors``. Notebooks
and grids read such files from the folder ``weights`` of the clone, or from another one that
``MEDLIB_WEIGHTS`` names (make … WEIGHTS=folder).
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from medlib.core import backbones
from medlib.core import weights as weight_files
from medlib.zoo import checkpoints, hub, rows


def inspect(path: Path) -> list[str]:
    """Describe a file and list the rows that can use it. Returns lines to print."""
    tensors = checkpoints.read(path)
    counts = Counter(name.partition(".")[0] for name in tensors)
    n = sum(tensor.numel() for tensor in tensors.values())
    lines = [f"{path}: {len(tensors)} tensors, {n:,} values"]
    lines += [f"  {part}: {count} tensors" for part, count in counts.most_common(12)]
    taken = []
    for row in backbones.TABLE.values():
        try:
            found = checkpoints.fit(tensors, row, path)
        except ValueError:
            continue
        taken.append(f"  {row.name} ({row.architecture}): {told(found)}")
    none = "  none. A row for it names its architecture in timm; convert says what does not fit."
    return [*lines, "Rows whose network takes it:", *(taken or [none])]


def told(found: checkpoints.Fitted) -> str:
    """One line of text: where the network lies in its file, and which tensors are left out."""
    words = [f"names of {found.naming}"]
    words += [f"under {found.found_under!r}"] if found.found_under else []
    aside = ", ".join(f"{part} ({n})" for part, n in found.set_aside.items())
    return "; ".join([*words, f"set aside: {aside or 'nothing'}"])


def convert(path: Path, name: str, folder: Path | None = None) -> list[str]:
    """Convert a file of weights for a row. Returns lines to print.

    The result is written into ``folder``. If none is given, this is the clone's folder ``weights``.
    Raises ValueError if the weights do not fit the row, or if another file has that name already.
    """
    row = backbones.get(name)
    found = checkpoints.fit(checkpoints.read(path), row, path)
    target = (folder or weight_files.FOLDER) / f"{row.timm_name}.safetensors"
    digest = checkpoints.write(found, target)
    return [f"{target} written for {name}: {told(found)}", f"sha256 {digest}"]


def fetch(names: Sequence[str], folder: Path | None = None) -> list[str]:
    """Fetch the weights of rows. Returns lines to print; raises what :func:`hub.fetch` raises."""
    lines = []
    for row in map(backbones.get, names):
        licence = row.licence + ", gated" * row.gated
        lines.append(f"{row.name}: {hub.fetch(row, folder) or 'no file'} (licence: {licence})")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fetching, inspecting, converting = map(commands.add_parser, ("fetch", "inspect", "convert"))
    fetching.add_argument("rows", nargs="+", help="keys of medlib/core/backbones.yaml")
    for own in inspecting, converting:
        own.add_argument("file", type=Path)
    converting.add_argument("row", help="a key of medlib/core/backbones.yaml")
    for own in fetching, converting:
        own.add_argument("--to", type=Path, help="the folder to write into (default: weights)")
    asked = parser.parse_args()
    try:
        rows.check()
        if asked.command == "fetch":
            lines = fetch(asked.rows, asked.to)
        elif asked.command == "inspect":
            lines = inspect(asked.file)
        else:
            lines = convert(asked.file, asked.row, asked.to)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
