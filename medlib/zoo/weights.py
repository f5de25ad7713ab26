"""Inspect a file of weights, and convert it for a row of backbones.yaml.

    python -m medlib.zoo.weights inspect FILE
    python -m medlib.zoo.weights convert FILE ROW [--to FOLDER]

``inspect`` prints what a file holds and which rows can use it. ``convert`` writes the tensors of a
row's network into ``<timm_name>.safetensors``. Notebooks and grids read this file from the folder
``MEDLIB_WEIGHTS`` (make … WEIGHTS=folder).
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from safetensors.torch import save_file

from medlib import files
from medlib.core import backbones
from medlib.zoo import checkpoints


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


def convert(path: Path, name: str, folder: Path) -> list[str]:
    """Write the file that a row reads. Returns lines to print.

    Raises ValueError if the weights do not fit the row, or if another file has that name already.
    """
    row = backbones.get(name)
    found = checkpoints.fit(checkpoints.read(path), row, path)
    target = folder / f"{row.timm_name}.safetensors"
    with files.replacing(target) as made:
        save_file({key: value.contiguous() for key, value in found.state.items()}, made)
        digest = files.file_sha256(made)
        if target.is_file() and files.file_sha256(target) != digest:
            way_out = "Remove it first, or choose another folder (--to)."
            raise ValueError(f"{target} is there and differs. {way_out}")
    return [f"{target} written for {name}: {told(found)}", f"sha256 {digest}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("inspect", "convert"):
        own = commands.add_parser(command)
        own.add_argument("file", type=Path)
    own.add_argument("row", help="a key of medlib/core/backbones.yaml")
    own.add_argument("--to", type=Path, default=Path("weights"), help="the folder to write into")
    asked = parser.parse_args()
    try:
        if asked.command == "inspect":
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
