"""The page of results: every benchmark that was run, models side by side, the paper's numbers beside them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from pyratok.report.results_measures import Measure
from pyratok.report.results_plots import COLOURS, QUALITIES, TOKENS, rate_chart, rate_lines
from pyratok.report.results_records import Curve, Picture, Result
from pyratok.report.results_tables import (
    PAPER,
    Group,
    Table,
    claims,
    flat_fields,
    group_results,
    protocol_differences,
    shown,
)
from pyratok.report.svg import bit_bars

SHOWN_MISSING = 20
MEDIA = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}
"""Pictures that the page can hold."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pyratok: results</title>
<link rel="icon" href="data:,">
<style>$style
td { font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); padding-right: 18px; }
th { vertical-align: bottom; white-space: normal; min-width: 5.5em; }
.overview :is(th, td):nth-child(-n+3) { text-align: left; white-space: normal; }
.ours { color: var(--accent); font-weight: 640; }
h3 { margin: 28px 0 10px; } h3 code { font-weight: 450; color: var(--soft); font-size: .85em; }
details { margin-top: 14px; font-size: .88rem; color: var(--soft); }
summary { cursor: pointer; } details table { margin: 8px 0 14px; font-size: .85rem; }
details td, details th { text-align: left; white-space: normal; overflow-wrap: anywhere; padding: 5px 14px 5px 0; }
details td:first-child, details th:first-child { position: static; background: none; white-space: nowrap; }
.plots, .tiles { margin-top: 18px; } .warn { color: #d2574c; }
figure img, figure video { display: block; width: 100%; height: auto; background: var(--well); }
figcaption, .note, h1, h2 { overflow-wrap: anywhere; }
@media (max-width: 560px) {
  .pad { padding: 14px 14px; }
  td:first-child, th:first-child { white-space: normal; min-width: 0; }
  details td:first-child { white-space: normal; }
}
</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">pyratok &middot; results</p>
  <h1>$title</h1>
  <p class="lead">$lead</p>
</header>
$overview
$sections
$pictures
<footer>$footer</footer>
</main>
</body>
</html>
"""


def render(results: Sequence[Result], pictures: Sequence[Picture] = ()) -> str:
    """The whole page as text; it needs nothing beside it. Raises ValueError for a picture of an unknown kind."""
    groups = group_results(results)
    style = (files("pyratok.report") / "template" / "style.css").read_text(encoding="utf-8")
    fields = {
        "style": style,
        "title": "What was measured, beside the paper" if groups else "Pictures",
        "lead": _lead(results, groups),
        "overview": _overview(groups),
        "sections": "".join(_section(name, members) for name, members in groups.items()),
        "pictures": _pictures(pictures),
        "footer": _footer(results),
    }
    # Names of files need not be text.
    return Template(PAGE).substitute(fields).encode("utf-8", "replace").decode()


def _lead(results: Sequence[Result], groups: Mapping[str, Sequence[Group]]) -> str:
    models = {f"{result.model} {result.fingerprint}" for result in results if result.model != "no model"}
    said = f"{_count(len(results), 'record')} of {_count(len(groups), 'benchmark')}, {_count(len(models), 'model')}. "
    return said + (
        "Numbers may be compared where their protocol has the same hash; those of the paper were reached at another "
        "scale and by a protocol that it describes only in part."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _overview(groups: Mapping[str, Sequence[Group]]) -> str:
    """A line per record: its first number, that of the paper, and how much of the dataset it is of."""
    rows = []
    for group in (group for members in groups.values() for group in members):
        if group.results[0].is_ablation:
            continue
        table = group.tables[-1]
        for result, label in zip(group.results, group.labels, strict=True):
            reached = [measure for measure, row in table.cells.items() if label in row]
            named = [m for m in reached if m.key == result.headline]
            best = next(iter([*named, *(m for m in reached if m.key not in _RATES), *reached]), None)
            theirs = [name for name in table.methods if name.startswith(PAPER) and name not in table.ours]
            methods = (label, theirs[0] if len(theirs) == 1 else "")
            numbers = ["-"] * 3 if best is None else [best.label, *(_with_rate(table, best, m) for m in methods)]
            counts = [f"{result.items[key]:,}" if key in result.items else "-" for key in _OVERVIEW_ITEMS]
            rows.append([group.benchmark, label, *numbers, *counts])
    if not rows:
        return ""
    heads = ("benchmark", "model", "first measure", "here", "paper", *_OVERVIEW_ITEMS.values())
    links = {name: f'<a href="#{_slug(name)}">{escape(name)}</a>' for name in groups}
    return (
        '<section><h2>Overview</h2><div class="card pad scroll"><table class="overview">'
        f"{_table(heads, rows, links=links)}</table></div></section>"
    )


def _with_rate(table: Table, measure: Measure, method: str) -> str:
    """A number of a table, with its rate where the table has one: without it, it would say nothing."""
    text = shown(measure, table.cells[measure].get(method))
    rates = [shown(m, row[method]) for m, row in table.cells.items() if m.key in _RATES and method in row]
    return f"{text} at {rates[0]} bpp" if rates and text != "-" else text


_RATES = ("bits_per_pixel",)
_OVERVIEW_ITEMS = {"items found": "found", "items missing": "missing", "items scored": "scored"}


# ------------------------------------------------------------------------------------------------------ a benchmark


def _section(name: str, groups: Sequence[Group]) -> str:
    parts = [f'<section id="{_slug(name)}"><h2>{escape(name)}</h2>']
    if len(groups) > 1 and not groups[0].results[0].is_ablation:
        differ = protocol_differences(groups)
        heads = ("field", *(group.digest for group in groups))
        rows = [[field, *values] for field, values in differ.items()]
        parts.append(
            f'<p><span class="warn">{len(groups)} protocols: the tables below may not be compared with each other.'
            f"</span> They differ in {escape(', '.join(differ))}.</p>"
            f"<details><summary>What differs</summary><table>{_table(heads, rows)}</table></details>"
        )
    return "".join([*parts, *map(_group, groups), "</section>"])


def _group(group: Group) -> str:
    parts = [f"<h3>Protocol <code>{group.digest}</code></h3>"]
    for table in group.tables:
        if len(group.tables) > 1 and table is not group.tables[0]:
            parts.append(f"<h3>{escape(table.title)}</h3>")
        parts.append(f'<div class="card pad scroll"><table>{_rows_of(table)}</table></div>')
    notes = {note: None for result in group.results for note in result.notes}
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
    parts += [_plots(group), _bits(group), *_details(group)]
    return "".join(parts)


def _rows_of(table: Table) -> str:
    return _table(table.heads, table.rows, ours=table.ours)


def _plots(group: Group) -> str:
    """Quality over rate, where a record has curves; a codec that is the same for several models is drawn once."""
    curves: dict[str, Curve] = {}
    for result, label in zip(group.results, group.labels, strict=True):
        for name, points in result.curves.items():
            if name == TOKENS:
                curves[label] = points
            elif curves.setdefault(name, points) != points:
                curves[f"{name} ({label})"] = points
    cards = []
    for quality, (title, decimals) in QUALITIES.items():
        if lines := rate_lines(curves, quality):
            drawn = rate_chart(lines, f"{title} over bits per pixel", decimals)
            note = "over bits per pixel, logarithmic"
            cards.append(f'<div class="card pad"><strong>{title}</strong><p class="note">{note}</p>{drawn}</div>')
    return f'<div class="plots">{"".join(cards)}</div>' if cards else ""


def _bits(group: Group) -> str:
    """How balanced the bits of every level are, where a record has counted them."""
    cards = [
        f'<figure class="card pad">{bit_bars(means, COLOURS[index % len(COLOURS)])}'
        f"<figcaption>{escape(label)}, {escape(name)}: share of +1 of every bit</figcaption></figure>"
        for result, label in zip(group.results, group.labels, strict=True)
        for index, (name, means) in enumerate(result.bits.items())
    ]
    return f'<div class="tiles maps">{"".join(cards)}</div>' if cards else ""


def _details(group: Group) -> Iterable[str]:
    """Folded away: the protocol, who was measured with what, and what was missing."""
    protocol = [[name, text] for name, text in flat_fields(group.results[0].rules).items()]
    yield f"<details><summary>Protocol</summary><table>{_table(('field', 'value'), protocol)}</table></details>"
    names = dict.fromkeys(name for result in group.results for name in result.versions)
    heads = ("model", "fingerprint", "weights", *names, "file")
    rows = [
        [r.model, r.fingerprint or "-", r.weights or "-", *(r.versions.get(n, "-") for n in names), _file(r.path)]
        for r in group.results
    ]
    yield f"<details><summary>Models and versions</summary><table>{_table(heads, rows)}</table></details>"
    for result, label in zip(group.results, group.labels, strict=True):
        if result.missing:
            more = len(result.missing) - SHOWN_MISSING
            listed = ", ".join(result.missing[:SHOWN_MISSING]) + (f", and {more:,} more" if more > 0 else "")
            title = f"{label}: {_count(len(result.missing), 'item')} missing or unreadable"
            yield f"<details><summary>{escape(title)}</summary><p>{escape(listed)}</p></details>"


def _file(path: Path) -> str:
    return "/".join(path.absolute().parts[-2:])


# -------------------------------------------------------------------------------------------------------- the parts


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    return f'<section><h2>Pictures</h2><div class="tiles">{"".join(map(_figure, pictures))}</div></section>'


def _figure(picture: Picture) -> str:
    kind = MEDIA.get(picture.path.suffix.lower())
    if kind is None:
        raise ValueError(f"{picture.path} cannot be put into a page; what can: {', '.join(MEDIA)}")
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    name = escape(picture.source)
    if kind.startswith("video/"):
        media = f'<video src="data:{kind};base64,{data}" muted autoplay loop playsinline controls></video>'
    else:
        media = f'<img src="data:{kind};base64,{data}" alt="{name}">'
    text = f"<strong>{name}</strong> {escape(picture.caption)} <small>{escape(picture.model)}</small>"
    return f'<figure class="card">{media}<figcaption>{text}</figcaption></figure>'


def _footer(results: Sequence[Result]) -> str:
    versions = sorted({" ".join(pair) for result in results for pair in result.versions.items()})
    return (
        f"<p>Paper: {escape(claims()['source'])}; each table is named above its numbers.</p>"
        f"<p>Measured with {escape(', '.join(versions)) or 'nothing'}.</p>"
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    ours: frozenset[str] = frozenset(),
    links: Mapping[str, str] | None = None,
) -> str:
    """Heads and cells are text; a column or row in ``ours`` stands out, a cell in ``links`` is what that gives."""

    def cell(text: str, tag: str, marked: bool) -> str:
        return f"<{tag}{' class=ours' if marked else ''}>{(links or {}).get(text) or escape(text)}</{tag}>"

    head = "".join(cell(name, "th", name in ours) for name in heads)
    body = ["".join(cell(text, "td", heads[i] in ours or row[0] in ours) for i, text in enumerate(row)) for row in rows]
    return f"<tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in body)}"
