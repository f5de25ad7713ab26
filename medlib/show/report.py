"""One HTML page with all figures and tables of a grid: opens from disk, needs no network.

It opens with the answer in sentences and the figures of :data:`registry.OPENING`; all other
sections are folded. It holds a small copy of each figure, and links to the files beside it.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL import Image

from medlib import files
from medlib.show import registry, tables
from medlib.stats import recommendation

TEMPLATE = Path(__file__).with_name("page.html")
CELL = ["task", "backbone", "regime"]
QUESTION = (
    "Which pretrained backbone should a medical image classifier start from, and frozen or "
    "fine-tuned?"
)
LIMIT = 4_000_000  # bytes of a page
AROUND = 60_000  # bytes at most: all of the page but its figures and tables
# Ways to copy the figures: colours of a plot; pixels in width and quality of a row of photographs.
# The first way that keeps the page within the limit is taken. If none does, it is the last one.
COPIES = ((32, 1200, 60), (20, 1100, 45), (14, 1000, 35))
LINKED = {"png": "PNG", "pdf": "PDF", "svg": "SVG", "csv": "CSV", "md": "Markdown", "tex": "LaTeX"}
Shown = tuple[str, registry.Entry]  # a stem and its entry


def write(
    path: Path,
    title: str,
    caption: str,
    states: pd.DataFrame,
    environment: pd.DataFrame,
    citations: Sequence[str],
    tasks: Mapping[str, str],
) -> None:
    """Write the page, whole or not at all, with the figures and tables that lie beside it.

    ``states`` has a row for each task, backbone and regime, and the counts of its runs: ``done``,
    then a column for each state of runs that are not done. ``environment`` is any table.
    ``citations`` are those of the data sets. ``tasks`` are the titles of the tasks and of the data
    sets on which their models were tested, by name, in the order of the page. The page is at most
    :data:`LIMIT` bytes large if one of :data:`COPIES` is small enough.
    """
    counts = states.drop(columns=CELL).sum()
    lacking = states.ne(0) & ~states.columns.isin([*CELL, "done"])
    gaps = lacking.any(axis=1)
    stems = {file.stem for file in path.parent.glob("*") if file.suffix in (".png", ".html")}
    overall, *by_task = (list(registry.sections(stems, task)) for task in ("", *tasks))
    everything = [shown for part in (overall, *by_task) for s in part for shown in s.shown]
    sizes = [path.with_name(f"{stem}.html") for stem, _ in everything]
    room = LIMIT - AROUND - sum(table.stat().st_size for table in sizes if table.is_file())
    pictures = _copies(path.parent, everything, room)

    def drawn(sections: Iterable[registry.Section], of: str = "") -> list[dict]:
        return [
            section._asdict()
            | {"shown": Markup().join(_shown(path.parent, *s, pictures, of) for s in section.shown)}
            for section in sections
        ]

    words = {"title": title, "caption": caption, "citations": citations, "question": QUESTION}
    words |= {"version": version("medlib"), "rule": recommendation.RULE}
    words |= {"answers": _answers(path.with_name("answer.csv"))}
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    page = template.render(
        words,
        whole=not gaps.any(),
        counts=", ".join(f"{n} runs {state}" for state, n in counts.items() if n),
        gaps=tables.html(
            states[gaps], lacking[gaps], "Not all of these runs are done.", tag="mark"
        ),
        opening=drawn(s for s in overall if s.heading == registry.OPENING),
        overall=drawn(s for s in overall if s.heading != registry.OPENING),
        tasks=[
            {"key": f"task-{task}", "title": name, "sections": drawn(of_task, name)}
            for (task, name), of_task in zip(tasks.items(), by_task, strict=True)
            if of_task
        ],
        states=tables.html(states, lacking, "The number of runs of each cell.", tag="mark"),
        environment=tables.html(
            environment, environment.isna(), "The software and hardware of the runs."
        ),
    )
    files.save_text(path, page)


def _answers(table: Path) -> list[tuple[str, str, str]]:
    """Of each task: its title, the first sentence of its answer, and the rest."""
    if not table.is_file():
        return []
    rows = pd.read_csv(table, keep_default_na=False).map(files.plain_text)
    split = [(row.task, *row.answer.partition(". ")) for row in rows.itertuples()]
    return [(task, first + point.strip(), rest) for task, first, point, rest in split]


def _shown(
    folder: Path, stem: str, entry: registry.Entry, pictures: Mapping[str, Markup], task: str
) -> Markup:
    """The figure and the table of that name, if they exist, with links to their files.

    The answer is not shown: the page has it in sentences.
    """
    table = folder / f"{stem}.html"
    if stem == "answer" or not (stem in pictures or table.is_file()):
        return Markup()
    paths = {name: folder / f"{stem}.{kind}" for kind, name in LINKED.items()}
    links = Markup(" · ").join(
        Markup('<a href="{}">{}</a>').format(file.name, name)
        for name, file in paths.items()
        if file.is_file()
    )
    links = Markup('<span class="files">{}: {}</span>').format(stem, links)
    shown = Markup()
    if stem in pictures:
        caption, alt = (words.format(task=task) for words in registry.CAPTIONS[entry.stem])
        figure = Markup('<figure><img loading="lazy" alt="{}" {}><figcaption>{} {}</figcaption>')
        shown = figure.format(alt, pictures[stem], caption, links) + Markup("</figure>\n")
    if table.is_file():
        shown += Markup(table.read_text(encoding="utf-8"))
        shown += Markup("" if stem in pictures else "<p>{}</p>\n").format(links)
    return shown


def _copies(folder: Path, shown: Iterable[Shown], room: int) -> dict[str, Markup]:
    """The HTML attributes of small copies of the figures, by stem, of ``room`` bytes at most.

    A plot is copied without loss, apart from its number of colours, so that its text stays sharp.
    What shows images of patients is copied with loss: few colours would falsify them. Raises
    ValueError that names a figure which cannot be read.
    """
    there = {s: e.patients for s, e in shown if (folder / f"{s}.png").is_file()}
    for colours, width, quality in COPIES:
        made = {}
        for stem, photographs in there.items():
            image = _read(folder / f"{stem}.png")
            size, how = (
                image.size,
                {"lossless": True, "quality": 60, "method": 2},
            )  # quality: effort
            if photographs:
                how = {"quality": quality}
                image.thumbnail((width, image.height))
            else:
                image = image.quantize(colours, Image.Quantize.MAXCOVERAGE).convert("RGB")
            written = io.BytesIO()
            image.save(written, "WEBP", **how)
            data = base64.b64encode(written.getvalue()).decode()
            source = 'width="{}" height="{}" src="data:image/webp;base64,{}"'
            made[stem] = Markup(source).format(*size, data)
        if sum(map(len, made.values())) <= room:
            break
    return made


def _read(picture: Path) -> Image.Image:
    try:
        with Image.open(picture) as file:
            return file.convert("RGB")
    except OSError as error:
        way_out = "remove it, and draw the figures again (make figures GRID=…)"
        raise ValueError(f"{picture} is empty or damaged: {way_out}") from error
