"""docs/performance.md and its plots from benchmarks/results/*.json: nothing that was not measured, nothing by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

from records import RESULTS, Record, read
from sections import SECTIONS

from pyratok.files import write_atomically

DOCS = RESULTS.parents[1] / "docs"

INTRO = """# Performance

Written by `benchmarks/report.py` from the records in `benchmarks/results`; edit neither. `make bench` measures
everything anew, on an idle machine, and writes this page. Candidates take turns in one process and times are medians,
so that a machine that speeds up or slows down does so for all of them; peak memory is that of a process of its own,
libraries and weights included.
"""


def provenance(record: Record) -> str:
    """Where, when and with what a record was measured."""
    machine = record["machine"]
    bf16 = f", {' and '.join(machine['bf16_instructions'])}" if machine["bf16_instructions"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    commit = f" at commit {record['commit'][:12]}" if record["commit"] else ""
    return (
        f"*{record['date'][:10]}{commit}: {machine['processor']}, {machine['threads']} threads{bf16}; "
        f"Python {machine['python']}, {versions}.*"
    )


def page(results: Path, images: str) -> tuple[str, dict[str, str]]:
    """The page, and its plots by file name; ``images`` is their folder as seen from the page."""
    blocks, plots = [INTRO.strip()], {}
    for section in SECTIONS:
        blocks += [f"## {section.title}", section.text]
        record = read(results, section.name)
        if record is None:
            blocks.append("Not measured yet.")
            continue
        blocks += section.tables(record)
        if section.plot is not None:
            name = f"perf-{section.name}.svg"
            plots[name] = section.plot(record)
            blocks.append(f"![{section.title}]({images}/{name})")
        blocks.append(provenance(record))
    return "\n\n".join(blocks) + "\n", plots


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--docs", type=Path, default=DOCS, help="folder for performance.md and images/")
    arguments = options.parse_args()
    text, plots = page(arguments.results, "images")
    (arguments.docs / "images").mkdir(parents=True, exist_ok=True)
    for name, drawing in plots.items():
        write_atomically(arguments.docs / "images" / name, drawing)
    write_atomically(arguments.docs / "performance.md", text)


if __name__ == "__main__":
    main()
