"""Find the patient in the path of an image: the option ``patient`` of some layouts."""

from collections import Counter
from collections.abc import Iterable, Iterator

import regex  # as re, with a limit of time

from medlib.data.layouts import base
from medlib.errors import ManifestError

PATIENCE = 1  # seconds to match one name: with some patterns it could take hours
# Names of patients often look like this within a path.
LIKELY = r"(?<![a-z])(patient|person|subject|subj|sub|case|mrn|pid|pat|pt|p)[ _-]?\d+"
LIKELY = regex.compile(LIKELY, regex.IGNORECASE)


def pattern(option: str, text: str) -> regex.Pattern:
    """Compile a regular expression of layout_options. Raises ManifestError if it is not valid."""
    try:
        return regex.compile(text or ".*")
    except regex.error as error:
        wrong = f"{option} is no regular expression: {error}"
        raise ManifestError(f"layout_options: {wrong}") from error


def found(pattern: regex.Pattern, text: str, how: str = "search") -> regex.Match | None:
    """What a pattern finds in a text. Raises ManifestError for a pattern that takes too long."""
    try:
        return getattr(pattern, how)(text, timeout=PATIENCE)
    except TimeoutError as error:
        slow = f"the pattern {pattern.pattern!r} takes more than {PATIENCE} s to search {text!r}"
        way_out = "write it without a repeat within a repeat, such as (a+)+"
        raise ManifestError(f"layout_options: {slow}: {way_out}.") from error


def of(pattern: regex.Pattern, shown: str) -> str:
    """The patient in a path below the data set's folder; "" if there is none."""
    match = found(pattern, shown if "/" in pattern.pattern else shown.rpartition("/")[2])
    return (match and match[min(pattern.groups, 1)]) or ""


def none(pattern: str) -> str:
    """The reason why a file has no patient."""
    where = "path" if "/" in pattern else "name"
    other = "" if "/" in pattern else " (with a / in it, the whole path is searched)"
    return f"its {where} tells no patient: it has no {pattern!r}{other}"


def one_image_each(paths: Iterable[str], columns: Iterable[str] = ()) -> Iterator[base.Note]:
    """Notes: each image counts as one patient, and some names in the paths may be patients."""
    yield base.Note("Patients are not known: each image is taken as a patient of its own.")
    names = {path: match[0] for path in paths if (match := LIKELY.search(path))}
    times = Counter(names.values())
    if len(times) > 1 and max(times.values()) > 1:
        path, name = next((p, n) for p, n in names.items() if times[n] > 1)
        in_folder = name in path.rpartition("/")[0]
        word = regex.escape(name.rstrip("0123456789")) + r"\d+"
        option = f"patient: '({word}).*/'" if in_folder else f"patient: '{word}'"
        many = f"{len(names)} paths hold {len(times)} names such as {name!r} (in {path})"
        yield base.Note(f"{many}. If these are patients, write in layout_options: {option}")
    if alike := [c for c in columns if regex.search("patient|subject|mrn|lesion", c.lower())]:
        many = f"The table has the column(s) {', '.join(alike)}."
        way_out = f"columns: {{patient_id: {alike[0]}}}"
        yield base.Note(f"{many} If one names the patient, write in layout_options: {way_out}")
