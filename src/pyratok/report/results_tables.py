"""Results side by side: tables of methods and measures, with the paper's numbers; as text, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pyratok.report.results_measures import Measure, describe
from pyratok.report.results_records import Cells, Result, Value, digest_of

PAPER = "PyraTok"
"""Whose row it is in the paper's tables."""
CSV_COLUMNS = ("benchmark", "protocol", "table", "method", "measure", "value", "spread")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Methods and measures, one of them per row. ``ours``: the methods that were measured here."""

    title: str
    methods: tuple[str, ...]
    cells: Cells
    ours: frozenset[str] = frozenset()
    by_measure: bool = True

    @property
    def heads(self) -> tuple[str, ...]:
        if self.by_measure:
            return ("measure", *self.methods)
        return ("method", *(measure.label for measure in self.cells))

    @property
    def rows(self) -> list[list[str]]:
        """The name of each row and its numbers as they are shown."""
        if self.by_measure:
            return [[measure.label, *(shown(measure, row.get(m)) for m in self.methods)] for measure, row in self]
        return [[m, *(shown(measure, row.get(m)) for measure, row in self)] for m in self.methods]

    def __iter__(self) -> Any:
        return iter(self.cells.items())


@dataclass(frozen=True, kw_only=True)
class Group:
    """Results that may be compared: one benchmark, one protocol but for who is measured by it.

    ``labels``: what each model is called here.
    """

    results: tuple[Result, ...]
    labels: tuple[str, ...]
    tables: tuple[Table, ...]

    @property
    def benchmark(self) -> str:
        return self.results[0].benchmark

    @property
    def digest(self) -> str:
        return digest_of(self.results[0].rules)


def group_results(results: Sequence[Result]) -> dict[str, list[Group]]:
    """By benchmark, then by protocol, in the order in which they came; ablations each on its own."""
    by_protocol: dict[tuple[str, str, int], list[Result]] = {}
    for index, result in enumerate(results):
        alone = index if result.is_ablation else -1
        by_protocol.setdefault((result.benchmark, digest_of(result.rules), alone), []).append(result)
    groups: dict[str, list[Group]] = {}
    for (benchmark, _, _), members in by_protocol.items():
        labels = ("",) if members[0].is_ablation else _labels(members)
        measured = _measured(members, labels)
        found = [measured, _beside_paper(members[0], measured)]
        tables = tuple(table for table in found if table is not None)
        groups.setdefault(benchmark, []).append(Group(results=tuple(members), labels=labels, tables=tables))
    return groups


def protocol_differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The fields in which the protocols of one benchmark differ, with the value of each group."""
    flat = [flat_fields(group.results[0].rules) for group in groups]
    names = dict.fromkeys(name for fields in flat for name in fields)
    return {name: [fields.get(name, "-") for fields in flat] for name in names if len({f.get(name) for f in flat}) > 1}


def flat_fields(protocol: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A protocol's fields as text, those of its parts named ``part.field``."""
    fields: dict[str, str] = {}
    for name, value in protocol.items():
        if isinstance(value, Mapping):
            fields |= flat_fields(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return fields


def shown(measure: Measure, value: Value | None) -> str:
    """A number as a table has it; - for none."""
    if value is None:
        return "-"
    spread = "" if value.spread is None else f" \N{PLUS-MINUS SIGN} {value.spread * measure.scale:,.{measure.digits}f}"
    return f"{value.mean * measure.scale:,.{measure.digits}f}{spread}"


def _labels(results: Sequence[Result]) -> tuple[str, ...]:
    """As little of a model's identity as tells all of them apart, and the file where nothing else does."""
    ways = (
        lambda r: r.model,
        lambda r: f"{r.model} {r.fingerprint[:8]}",
        lambda r: f"{r.model} {r.fingerprint[:8]} {r.measured[:8]}".rstrip(),
        lambda r: f"{r.model} ({r.path.parent.name}/{r.path.name})",
        lambda r: f"{r.model} ({r.path})",
    )
    found = [tuple(way(result) for result in results) for way in ways]
    return next((labels for labels in found if len(set(labels)) == len(labels)), found[-1])


def _measured(results: Sequence[Result], labels: Sequence[str]) -> Table:
    """All measures of all models; a baseline that is the same for all of them stands there once."""
    keys = {measure: None for result in results for measure in result.cells}
    cells: Cells = {measure: {} for measure in keys}
    ours: dict[str, None] = {}
    baselines: dict[str, None] = {}
    for result, label in zip(results, labels, strict=True):
        alone = () if result.is_ablation else ("",)  # also a model of which there is no number is named
        for method in dict.fromkeys((*alone, *(method for row in result.cells.values() for method in row))):
            numbers = {measure: row[method] for measure, row in result.cells.items() if method in row}
            is_ours = method == "" or method.startswith(" ") or result.is_ablation
            name = f"{label}{method}" if is_ours else method
            known = {measure: row[name] for measure, row in cells.items() if name in row}
            if known and known != numbers:
                name = f"{method} ({label})"
            (ours if is_ours else baselines)[name] = None
            for measure, value in numbers.items():
                cells[measure][name] = value
    for result, label in zip(results, labels, strict=True):
        if not result.is_ablation:
            for name, count in result.items.items():
                cells.setdefault(Measure(name, name, 0), {})[label] = Value(float(count))
    return Table(
        title="Measured",
        methods=(*ours, *baselines),
        cells=cells,
        ours=frozenset(ours),
        by_measure=not results[0].is_ablation,
    )


def _beside_paper(first: Result, measured: Table) -> Table | None:
    """The paper's rows, with ours above them where they have a number of the same name; None without a counterpart."""
    if first.is_ablation:
        named = dict.fromkeys(method for row in first.paper.values() for method in row)
        title = "The paper's, at its own scale"
        return Table(title=title, methods=tuple(named), cells=first.paper, by_measure=False) if named else None
    claim = claims()["benchmarks"].get(first.benchmark)
    if claim is None:
        return None
    known = {measure.key: measure for measure in measured.cells}
    cells: Cells = {}
    for index, key in enumerate(claim["measures"]):
        measure = known.get(key) or describe(key)
        ours = {name: value for name, value in measured.cells.get(measure, {}).items() if name in measured.ours}
        printed = {name: row[index] for name, row in claim["rows"].items() if row[index] is not None}
        cells[measure] = ours | {f"{name} (paper)": Value(v / measure.scale) for name, v in printed.items()}
    mine = [name for name in measured.methods if any(name in row for row in cells.values()) and name in measured.ours]
    theirs = sorted(claim["rows"], key=lambda name: not name.startswith(PAPER))
    note = f", {claim['note']}" if claim["note"] else ""
    return Table(
        title=f"Beside the paper ({claim['from']}{note})",
        methods=(*mine, *(f"{name} (paper)" for name in theirs)),
        cells=cells,
        ours=frozenset(mine),
        by_measure=False,
    )


@cache
def claims() -> dict[str, Any]:
    """The paper's tables: ``source``, and by benchmark the table, the names of its measures and its rows."""
    found: dict[str, Any] = json.loads((files("pyratok.report") / "claims.json").read_text("utf-8"))
    return found


# --------------------------------------------------------------------------------------------------------- the files


def to_csv(groups: Iterable[Group]) -> str:
    """A line per number, unrounded, in the unit that its measure names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for group in groups:
        for table in group.tables:
            for measure, row in table:
                for method in table.methods:
                    if (value := row.get(method)) is not None:
                        spread = "" if value.spread is None else repr(value.spread * measure.scale)
                        number = repr(value.mean * measure.scale)
                        line = (group.benchmark, group.digest, table.title, method, measure.label, number, spread)
                        writer.writerow(line)
    return out.getvalue()


def to_latex(groups: Iterable[Group]) -> str:
    """A ``table`` with the rules of booktabs for every table of the page."""
    parts = ["% \\usepackage{booktabs}"]
    for group in groups:
        for table in group.tables:
            caption = f"{group.benchmark}, protocol {group.digest}. {table.title}."
            lines = [f"{' & '.join(map(latex, cells))} \\\\" for cells in (table.heads, *table.rows)]
            parts += [
                "",
                "\\begin{table}",
                "\\centering",
                f"\\caption{{{latex(caption)}}}",
                f"\\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
                "\\toprule",
                lines[0],
                "\\midrule",
                *lines[1:],
                "\\bottomrule",
                "\\end{tabular}",
                "\\end{table}",
            ]
    return "\n".join(parts) + "\n"


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "\N{PLUS-MINUS SIGN}": "$\\pm$",
    "<": "$<$",
    ">": "$>$",
}


def latex(text: str) -> str:
    """Text whose signs LaTeX prints as they are."""
    return "".join(_LATEX.get(sign, sign) for sign in text)
