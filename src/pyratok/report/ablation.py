"""The page of an ablation: what was measured, the paper's numbers beside it, and where its order does not hold."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template

from pyratok.eval.ablation import MEASURES, AblationRecord, Row, Verdict

RATE_TOLERANCE = 0.03
"""Rows whose rate is further from the reference's are named on the page."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pyratok: $title</title>
<link rel="icon" href="data:,">
<style>$style
main { max-width: 1480px; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); }
td small { color: var(--soft); } td p { color: var(--soft); font-size: .8rem; white-space: normal; min-width: 16em; }
.yes { color: #2b9a62; } .no { color: #d2574c; font-weight: 640; } .open { color: var(--soft); }
</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">pyratok &middot; ablation: $name</p>
  <h1>$title</h1>
  <p class="lead">$lead</p>
</header>
<section><h2>Measured</h2><p>$measured_text</p>
  <div class="card pad scroll"><table>$measured</table></div></section>
<section><h2>Beside the paper</h2><p>$paper_text</p>
  <div class="card pad scroll"><table>$paper</table></div>$verdicts</section>
<footer>$footer</footer>
</main>
</body>
</html>
"""


def render(record: AblationRecord) -> str:
    """The whole page as text; it needs nothing beside it."""
    style = (files("pyratok.report") / "template" / "style.css").read_text(encoding="utf-8")
    fields = {
        "title": escape(record.title),
        "name": escape(record.name),
        "style": style,
        "lead": _lead(record),
        "measured_text": _measured_text(record),
        "measured": _measured(record),
        "paper_text": _paper_text(),
        "paper": _paper(record),
        "verdicts": _verdicts(record),
        "footer": _footer(record),
    }
    # Names of files need not be text.
    return Template(PAGE).substitute(fields).encode("utf-8", "replace").decode()


def value_text(row: Row, name: str) -> str:
    """Mean over seeds and, where there are several, their spread; - where nothing was measured."""
    found, measure = row.summary(name), MEASURES[name]
    if found is None:
        return "-"
    mean, spread = found
    return measure.shown(mean) + ("" if spread is None else f" \N{PLUS-MINUS SIGN} {measure.shown(spread)}")


def verdict_text(verdict: Verdict) -> str:
    """``yes``, ``no`` or ``open``, and by how much the reference is ahead (or, with a minus, behind)."""
    measure = MEASURES[verdict.measure]
    sign = 1 if measure.higher_is_better else -1
    spread = "" if verdict.spread is None else f" \N{PLUS-MINUS SIGN} {measure.shown(verdict.spread)}"
    return f"{_holds(verdict)} ({measure.shown(sign * verdict.ours, sign=True)}{spread})"


def order_text(row: Row) -> str:
    """Every verdict of a row in a line."""
    return ", ".join(f"{MEASURES[v.measure].label} {verdict_text(v)}" for v in row.verdicts) or "-"


def _holds(verdict: Verdict) -> str:
    return {True: "yes", False: "no", None: "open"}[verdict.holds]


def _lead(record: AblationRecord) -> str:
    trained = [row for row in record.rows if row.runs]
    if not trained:
        return f"{len(record.rows)} variants, none of them trained yet."
    runs = trained[0].runs
    return (
        f"{len(trained)} of {len(record.rows)} variants trained for {runs[0].steps:,} steps each on the same clips, "
        f"from the same VAE, with {_seeds(record.seeds)}. The training is short: what counts is which variant is "
        "ahead of which, not how far any of them gets."
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"up to {count} seeds"


def _measured_text(record: AblationRecord) -> str:
    away = [
        f"{escape(row.label)} ({record.rate_gaps[row.variant]:+.1%})"
        for row in record.rows
        if abs(record.rate_gaps.get(row.variant, 0.0)) > RATE_TOLERANCE
    ]
    rates = (
        f"Rates that whole bits on whole grids leave apart by more than {RATE_TOLERANCE:.0%}: {', '.join(away)}."
        if away
        else f"All rates lie within {RATE_TOLERANCE:.0%} of the reference's."
        if record.rate_gaps
        else ""
    )
    return (
        "Mean over seeds and, behind &plusmn;, their standard deviation. ST-LPIPS is a distance: lower is better. "
        f"Language is asked of tokens made without a caption. {rates}"
    )


def _measured(record: AblationRecord) -> str:
    names = ("variant", "bits/pixel", "parameters", "seeds", *(m.label for m in MEASURES.values()))
    rows = []
    for row in record.rows:
        rate = "-" if row.bits_per_pixel is None else f"{row.bits_per_pixel:.4f}"
        size = f"{row.runs[0].parameters / 1e6:.2f} M" if row.runs else "-"
        seeds = ", ".join(str(run.seed) for run in row.runs) or "-"
        cells = (rate, size, seeds, *(value_text(row, name) for name in MEASURES))
        rows.append([_name(row), *map(escape, cells)])
    return _table(names, rows)


def _paper_text() -> str:
    return (
        "The paper's numbers as printed, at its own scale (in some rows of its Table 6 the two data sets have changed "
        "places; the order is judged by their mean), and whether the reference is ahead of a variant here as it "
        "is there: yes, no, or open, where the difference is no larger than its spread over seeds. Behind it the lead "
        "of the reference. Classification of seen nouns stands for the paper's measures of understanding. Rows without "
        "numbers are not in the paper's tables."
    )


def _paper(record: AblationRecord) -> str:
    shown = [name for name in MEASURES if any(name in row.paper for row in record.rows)]
    heads = ("variant", *(MEASURES[name].paper for name in shown), "order of the paper holds?")
    rows = []
    for row in record.rows:
        printed = [" / ".join(f"{value:g}" for value in row.paper.get(name, ())) or "-" for name in shown]
        marks = "<br>".join(
            f'{escape(MEASURES[v.measure].label)} <span class="{_holds(v)}">{escape(verdict_text(v))}</span>'
            for v in row.verdicts
        )
        rows.append([_name(row), *map(escape, printed), marks or "-"])
    return _table(heads, rows)


def _verdicts(record: AblationRecord) -> str:
    """Plain sentences for what does not hold, and what stays open."""
    found = [(row, v) for row in record.rows for v in row.verdicts]
    if not found:
        return f'<p class="note">No order yet: it takes a run of {escape(record.reference)} beside those of others.</p>'

    def listed(holds: bool | None) -> str:
        return "; ".join(
            f"{escape(row.label)}, {escape(MEASURES[v.measure].label)} ({escape(verdict_text(v))})"
            for row, v in found
            if v.holds is holds
        )

    kept = sum(v.holds is True for _, v in found)
    against, open_ones = listed(False), listed(None)
    parts = [f"The paper's order holds in {kept} of {len(found)} comparisons."]
    parts.append(f"It does not hold for: {against}." if against else "")
    parts.append(f"Open within the spread over seeds: {open_ones}." if open_ones else "")
    return f'<p class="note">{" ".join(filter(None, parts))}</p>'


def _footer(record: AblationRecord) -> str:
    reconstruction, language = record.protocol.reconstruction, record.protocol.language
    return (
        f"<p>Reconstruction: {len(record.clips)} clips, {escape(record.held_out)}; {reconstruction.frames} frames of "
        f"{reconstruction.crop}&times;{reconstruction.crop}. Language: {language.clips} rendered clips per measure, "
        f"choices of {language.ways}. Protocol {record.protocol.digest}.</p>"
        f"<p>Clips: {escape(', '.join(record.clips))}.</p>"
    )


def _name(row: Row) -> str:
    note = f"<p>{escape(row.note)}</p>" if row.note else ""
    return f"{escape(row.label)} <small>{escape(row.variant)}</small>{note}"


def _table(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    """``rows`` are HTML already, ``heads`` are text."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<tr>{head}</tr>{body}"
