"""The wording of errors: every offender is named, with the valid choices and the way out."""

import difflib
import re
from collections.abc import Mapping, Sequence

MAX_LISTED = 20  # offenders named in one message before "… and n more"


def listed(offenders: Sequence[object], most: int = MAX_LISTED) -> str:
    """The offenders one a line, the rest of a long list as a count."""
    lines = [f"  - {offender}" for offender in offenders[:most]]
    if len(offenders) > most:
        lines.append(f"  … and {len(offenders) - most} more")
    return "\n".join(lines)


def unknown(kind: str, value: object, choices: Sequence[str], way_out: str = "") -> str:
    """The message for a name that is not among the valid ones."""
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {value!r}.{hint} Choose one of: {', '.join(choices)}. {way_out}".strip()


class ManifestError(ValueError):
    """Something in a card, a manifest or a data folder that would make a comparison unsound."""


# What pydantic expected, by the kind of the problem, in the words of a YAML file.
EXPECTED = {
    "string_type": "a text (write it in quotes)",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "greater_than_equal": "{ge} or more",
    "too_short": "{min_length} or more entries",
}


def problems_of(error: ValueError, names: Mapping[str, Sequence[str]]) -> list[str]:
    """A pydantic ``ValidationError`` as one line for each problem, without importing pydantic.

    ``names`` has the valid names of fields: under ``""`` those at the top, and under ``"volumes"``
    those of the part ``volumes``. An unknown name or value is answered with the closest valid one.
    """
    lines = []
    for problem in error.errors():
        kind, given, facts = problem["type"], problem["input"], problem.get("ctx", {})
        *part, name = map(str, problem["loc"])
        part = ".".join(part)
        where = re.sub(r"\.(\d+)", r"[\1]", f"{part}.{name}".strip("."))
        if kind == "extra_forbidden":
            lines.append(unknown(f"{part} field".strip(), name, names.get(part, ())))
        elif kind == "literal_error":
            lines.append(unknown(where, given, re.findall("'(.*?)'", facts["expected"])))
        elif kind in ("missing", "string_too_short"):
            lines.append(f"{where} is missing")
        elif kind in EXPECTED:
            lines.append(f"{where} is {given!r}, not {EXPECTED[kind].format(**facts)}")
        else:  # "value_error" was raised by a validator of ours: its message follows the value
            lines.append(f"{where} is {given!r}, {facts.get('error', problem['msg'])}")
    return lines
