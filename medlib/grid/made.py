"""Records of jobs: each says from which code, inputs and settings a job made its files.

A job writes its record when it ends. A plan compares the record with the present files. It compares
contents and never dates: a copied folder stays current, and an edited module is noticed even if
its date is old. The record lies beside the executed notebook.
"""

import contextlib
import hashlib
import io
import json
import os
import time
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path

from medlib import files

KEPT = "MEDLIB_DIGESTS"  # a controller sets this to the file of digests that its jobs may use
SETTLED = 2.0  # seconds; the digest of a file that changed more recently is not kept


def record(output: Path | str) -> Path:
    """The path of a job's record, beside the job's ``output``."""
    return Path(output).with_suffix(".made.json")


def code_cells(notebook: str) -> list[tuple[bool, str]]:
    """For each code cell in a notebook's text: whether it has the parameters, and its source."""
    cells = (cell for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code")
    return [
        ("parameters" in cell["metadata"].get("tags", []), "".join(cell["source"]))
        for cell in cells
    ]


def without_comments(code: str) -> str:
    """Python code without comments, blank lines and spaces at the ends of lines.

    Code that cannot be split into tokens, such as a cell that begins with %%bash, stays as it is.
    """
    lines = list(io.StringIO(code))  # split in the same way as tokenize does it
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError):
        return code
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    strings = {
        row
        for token in tokens
        if token.start[0] < token.end[0]  # a text of several lines keeps its blank lines
        for row in range(token.start[0], token.end[0])
    }
    kept = [
        line.rstrip("\r\n") if row in strings else line.rstrip()
        for row, line in enumerate(lines, start=1)
    ]
    return "\n".join(line for row, line in enumerate(kept, start=1) if line or row in strings)


def _digest(path: Path) -> str:
    """The digest of a file. Code counts without comments, and a notebook by its code cells."""
    if path.suffix not in (".py", ".ipynb"):
        return files.file_sha256(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = json.dumps([(given, without_comments(code)) for given, code in code_cells(text)])
    else:
        text = without_comments(text)
    return hashlib.sha256(text.encode()).hexdigest()


class Digests:
    """Digests of the contents of files.

    ``kept`` is a JSON file that remembers digests: a file is read again only if its size, its inode
    or one of its times has changed. One of these is the time of change, which no program can set.
    """

    def __init__(self, kept: Path | str | None = None):
        self.kept, self.known = kept, {}
        self.now: dict[str, str] = {}  # digests that this object has returned
        if kept:
            with contextlib.suppress(OSError, ValueError):
                self.known = files.read_json(kept)

    def of(self, path: Path | str) -> str:
        """The digest of a file; "" if it is not there."""
        path = str(path)
        if path not in self.now:
            try:
                self.now[path] = self._of(path)
            except (OSError, ValueError, KeyError, TypeError):  # not there, or not a notebook
                self.now[path] = ""
        return self.now[path]

    def _of(self, path: str) -> str:
        now = os.stat(path)
        stamp = [now.st_size, now.st_ino, now.st_mtime_ns, now.st_ctime_ns]
        known = self.known.get(path)
        if known and known[:-1] == stamp:
            return known[-1]
        digest = _digest(Path(path))
        if time.time_ns() - max(stamp[2:]) > SETTLED * 1e9:
            self.known[path] = [*stamp, digest]
        return digest

    def keep(self) -> None:
        """Write the file of digests. It is no error if the folder cannot be written to."""
        if self.kept:
            with contextlib.suppress(OSError):
                files.save_json(self.kept, self.known)


def _contents(paths: Iterable, digests: Digests) -> dict[str, str]:
    """Digests by path.

    A file with an absolute path, such as weights, may be moved: its key is its name alone.
    """
    paths = map(str, paths)
    return {os.path.basename(p) if os.path.isabs(p) else p: digests.of(p) for p in paths}


def begun(inputs: Sequence, settings: Sequence[str]) -> dict:
    """What a job that begins now is made from: the digests of its inputs, and its settings."""
    digests = Digests(os.environ.get(KEPT))
    return {"inputs": _contents(inputs, digests), "settings": list(settings)}


def ended(output: Path | str, made_from: dict, outputs: Sequence) -> None:
    """Write the record of a job that has ended; ``made_from`` was taken by :func:`begun`."""
    files.save_json(record(output), made_from | {"outputs": _contents(outputs, Digests())})


def why_stale(
    output: Path | str, inputs: Sequence, settings: Sequence[str], outputs: Sequence, now: Digests
) -> str:
    """Why a job whose outputs all exist has to run again; "" if it need not."""
    try:
        then = files.read_json(record(output))
        settings_then, inputs_then = then["settings"], then["inputs"]
        inputs, outputs = _contents(inputs, now), _contents(outputs, now)
        # A missing input will be made by another job. Then this is checked again.
        there = sorted(path for path in inputs if inputs[path])
        changed = [path for path in there if inputs_then.get(path, "") != inputs[path]]
        damaged = sorted(path for path in outputs if then["outputs"].get(path) != outputs[path])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "there is no record of what it was made from"
    if same := [path for path in changed if path in inputs_then]:
        return f"changed: {', '.join(same)}"
    if inputs.keys() != inputs_then.keys():
        return "its set of inputs has changed"
    if settings_then != list(settings):
        return "its settings have changed"
    return f"damaged or edited: {', '.join(damaged)}" if damaged else ""
