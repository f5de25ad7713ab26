"""Whether a results folder holds phantoms or real data. It never holds both."""

from pathlib import Path

from medlib.files import read_record
from medlib.grid import address

PHANTOMS, REAL = "phantoms", "real"


def held(results: Path | str) -> str:
    """What a results folder holds: "phantoms" or "real"; "" if nothing is prepared in it.

    Raises ValueError if it holds both, as an earlier version could leave it.
    """
    found = map(read_record, Path(results).glob(str(address.seeds("", "*"))))
    kinds = {PHANTOMS if seeds.get(PHANTOMS) is not None else REAL for seeds in found if seeds}
    if len(kinds) > 1:
        way_out = "Prepare the tasks of one kind again in another results folder"
        raise ValueError(f"{results} holds phantoms and real data. {way_out}, and remove this one.")
    return kinds.pop() if kinds else ""


def check(results: Path | str, data: str) -> None:
    """Raise ValueError if ``data`` is of the other kind than the results folder holds.

    ``data`` is the parameter of the notebooks: "phantoms", "real" or a folder.
    """
    kind, asked = held(results), PHANTOMS if data == PHANTOMS else REAL
    if kind not in ("", asked):
        way_out = f"Name another results folder, or remove {results}."
        raise ValueError(f"{results} holds {kind}, but data={data!r} asks for {asked}. {way_out}")
