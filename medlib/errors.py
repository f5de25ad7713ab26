"""The wording of errors: every offender is named, with the valid choices and the way out."""

import difflib
from collections.abc import Sequence

MAX_LISTED = 20  # offenders named in one message before "… and n more"


def listed(offenders: Sequence[object], most: int = MAX_LISTED) -> str:
    """A line for each offender; the rest of a long list is a count."""
    lines = [f"  - {offender}" for offender in offenders[:most]]
    if len(offenders) > most:
        lines.append(f"  … and {len(offenders) - most} more")
    return "\n".join(lines)


def unknown(kind: str, value: object, choices: Sequence[str], way_out: str = "") -> str:
    """The message for a name that is not among the valid ones."""
    # "resnet50" means the first choice that begins so, not the one that is spelt most like it.
    near = {c.partition("-")[0]: c for c in reversed(choices)} | {c: c for c in choices}
    close = difflib.get_close_matches(str(value), near, n=1)
    hint = f" Did you mean {near[close[0]]!r}?" if close else ""
    return f"Unknown {kind} {value!r}.{hint} Choose one of: {', '.join(choices)}. {way_out}".strip()


class ManifestError(ValueError):
    """Something in a card, a manifest or a data folder that would make a comparison unsound."""
