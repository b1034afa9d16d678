"""The page of benchmark results: what was measured is on it, and nothing else."""

from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from subprocesses import SOURCE, run_python

REPOSITORY = SOURCE.parent
BENCHMARKS = REPOSITORY / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("bench_*.py"))


def both(**values: Any) -> dict[str, Any]:
    """The same for the two ways."""
    return {"encode": values, "decode": copy.deepcopy(values)}


MACHINE = {
    "processor": "Abacus 9000",
    "threads": 2,
    "bf16_instructions": ["avx512_bf16"],
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "diffusers": None},
}
SPEEDS = {"encode": 1.25, "diffusers_encode": 4.5, "decode": 1.75, "diffusers_decode": 6.25}
USE = {"tokens": 1234, "percent": 42.5, "perplexity": 777.0, "dead_bits": 0}
STREAMED = [
    {"minute": 1, "resident_mib": 611.0, "seconds": 30.0},
    {"minute": 2, "resident_mib": 613.0, "seconds": 60.0},
]
FITTING = {"way": "encode", "refused": None, "predicted_mib": 2100.0, "peak_mib": 1946.0, "plan": "tiles of 512x512"}
RECORDS: dict[str, dict[str, Any]] = {
    "wan": {
        "clip": [17, 128, 128],
        "memory_clip": [33, 256, 256],
        "results": {
            "bfloat16": {
                "seconds": SPEEDS,
                "times_faster": {"encode": 3.6, "decode": 3.57},
                "best_conv_gflop_per_second": 987.0,
                "roofline_share": dict.fromkeys(SPEEDS, 0.61),
                "relative_difference": 0.0003,
            }
        },
        "memory": {
            "bfloat16": both(
                pyratok_mib=1500.0,
                pyratok_steps_mib=1200.0,
                diffusers_mib=3000.0,
                share_of_diffusers=0.5,
                share_of_diffusers_by_steps=0.4,
            )
        },
    },
    "nano": {
        "clip": [33, 256, 256],
        "results": {
            "float32": {
                "frames_per_second": {"encode": 61.5, "decode": 41.5, "encode_stream_2": 51.5, "decode_stream_2": 31.5},
                "vae_times_diffusers": {"encode": 3.11, "decode": 2.22},
            }
        },
        "latency": {"float32": both(steps=40, p50_ms=17.3, p95_ms=29.4)},
        "peak_mib": {"float32": {"encode": 901.0, "decode": 902.0}},
    },
    "lfq": {
        "bits": 16,
        "tokens": 4096,
        "results": {
            "seconds": {"per_bit": 0.0081, "groups_of_8": 0.0092, "library": 24.5},
            "times_faster": {"per_bit": 3024.0, "groups_of_8": 2663.0},
            "process_peak_mib": {"per_bit": 260.0, "groups_of_8": 270.0, "library": 7900.0},
            "added_mib": {"per_bit": 5.0, "groups_of_8": 9.0, "library": 7600.0},
            "times_less_process_memory": {"per_bit": 30.4, "groups_of_8": 29.3},
            "sample_entropy": {"pyratok": 2.1234, "library": 2.1233},
        },
        "against_joint": {
            "10": {
                "few_causes": {
                    "sample_entropy": {"joint": 1.5, "pyratok": 1.5, "library": 1.5},
                    "batch_entropy": {"joint": 3.125, "per_bit": 6.875, "groups_of_8": 4.375, "library": 3.125},
                }
            }
        },
    },
    "large": {
        "frames": 17,
        "dtype": "float32",
        "memory": "6GiB",
        "results": {
            "1080p": both(seconds=12.0, seconds_per_megapixel_frame=0.341, peak_mib=2048.0, plan="one tile"),
            "8K": both(seconds=200.0, seconds_per_megapixel_frame=0.355, peak_mib=3072.0, plan="tiles of 1024x1024"),
        },
        "per_pixel_ratio": {"encode": 1.04, "decode": 1.05},
        "planner_clip": [17, 2160, 3840],
        "planner": [{"budget_gib": 2, **FITTING}, {"budget_gib": 1, "way": "decode", "refused": "needs 1.1 GiB"}],
    },
    "long": {
        "minutes": 2,
        "fps": 25,
        "dtype": "bfloat16",
        "block": 16,
        "size": [256, 256],
        "results": both(minutes=STREAMED, times_real_time=1.93, growth_percent=0.33, peak_mib=655.0),
    },
    "seams": {
        "clip": [9, 256, 256],
        "tile": 128,
        "results": [
            {
                "halo": 64,
                "feather": 16,
                "seam_ratio": 1.0123,
                "relative_difference": 0.002,
                "differing_bits_percent": [3.25, 0.5],
            }
        ],
    },
    "resolutions": {
        "model": "pyratok-nano (0123)",
        "files": 3,
        "crops": 114,
        "crop": [17, 224, 224],
        "results": {
            "240": {**USE, "levels": [USE, USE], "enlarged_percent": 0.0, "paper_percent": 55.23},
            "4320": {**USE, "percent": 48.5, "levels": [USE, USE], "enlarged_percent": 100.0, "paper_percent": 97.12},
        },
    },
}
SHOWN = {
    "wan": ["1.25 s", "4.50 s", "3.60x", "61%", "987 (bfloat16)", "0.0003 (bfloat16)", "1500 MiB", "0.50", "0.40"],
    "nano": ["61.5", "31.5", "3.11x", "17.3", "29.4", "902 MiB"],
    "lfq": ["8.1 ms", "3,024x", "7,900 MiB", "30.4x", "2.1234", "6.875", "few causes"],
    "large": ["200 s", "0.355", "3.00 GiB", "tiles of 1024x1024", "1.04", "95%", "refused"],
    "long": ["1.93x", "611 MiB", "613 MiB", "+0.3 %"],
    "seams": ["64 pixels, blended over 32", "1.012", "0.002", "3.25 %", "bits of level 2"],
    "resolutions": ["240p", "42.5 %", "55.2 %", "97.1 %", "777", "100 %"],
}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``benchmarks/report.py``, whose folder is no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("report")
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def keep(folder: Path, name: str, **changes: Any) -> None:
    record = {"benchmark": name, "format": 2, "quick": False, "date": "2026-01-02T03:04:05", "commit": "c0ffee" * 7}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**record, "machine": MACHINE, **RECORDS[name], **changes}))


def part_of(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_benchmark_has_a_section_and_an_example_here(report: Any) -> None:
    names = {section.name for section in report.SECTIONS}
    assert names == {script.removeprefix("bench_") for script in SCRIPTS} == set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_a_section_shows_what_was_measured_and_where(report: Any, tmp_path: Path, name: str) -> None:
    keep(tmp_path, name)
    text, plots = report.page(tmp_path, "images")
    (section,) = (section for section in report.SECTIONS if section.name == name)
    shown = part_of(text, section.title)
    assert not [figure for figure in SHOWN[name] if figure not in shown], shown
    assert "2026-01-02 at commit c0ffeec0ffee: Abacus 9000, 2 threads, avx512_bf16" in shown
    assert "torch 2.13.0" in shown
    assert "None" not in shown
    assert text.count("Not measured yet") == len(RECORDS) - 1
    assert set(plots) == ({f"perf-{name}.svg"} if section.plot else set())
    assert all(f"(images/{plot})" in shown for plot in plots)


@pytest.mark.parametrize("name", RECORDS)
def test_tables_are_rectangular(report: Any, tmp_path: Path, name: str) -> None:
    keep(tmp_path, name)
    text, _ = report.page(tmp_path, "images")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert tables
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_without_results_nothing_is_claimed(report: Any, tmp_path: Path) -> None:
    text, plots = report.page(tmp_path / "nowhere", "images")
    assert text.count("Not measured yet.") == len(report.SECTIONS)
    assert not plots
    assert not [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("changes", [{"quick": True}, {"format": 1}])
def test_trial_runs_and_older_records_are_not_shown(report: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    keep(tmp_path, "long", **changes)
    assert report.page(tmp_path, "images") == report.page(tmp_path / "nowhere", "images")


def test_plots_are_drawings_that_stand_alone(report: Any, tmp_path: Path) -> None:
    for name in RECORDS:
        keep(tmp_path, name)
    _, plots = report.page(tmp_path, "images")
    for drawing in plots.values():
        root = ET.fromstring(drawing)
        width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        for element in root.iter():
            for axis, limit in (
                ("x", width),
                ("y", height),
                ("x1", width),
                ("x2", width),
                ("cx", width),
                ("cy", height),
            ):
                assert 0 <= float(element.attrib.get(axis, 0)) <= limit, element.attrib


def test_bars_are_as_long_as_their_values(report: Any) -> None:
    drawn = importlib.import_module("plots").bars([("a", {"us": 1.0, "<them>": 4.0})], title="t & t")
    rectangles = [element for element in ET.fromstring(drawn).iter() if element.tag.endswith("rect")]
    short, long = (float(element.attrib["width"]) for element in rectangles if element.attrib.get("x") == "150")
    assert long == pytest.approx(4 * short, rel=1e-2)


def test_curves_rise_with_their_values(report: Any) -> None:
    points = [(1.0, 5.0), (10.0, 7.0), (100.0, 9.0)]
    drawn = importlib.import_module("plots").curves({"use": points}, title="t", x_label="x", log_x=True)
    (line,) = (e for e in ET.fromstring(drawn).iter() if e.tag.endswith("polyline"))
    xs, ys = zip(*(map(float, point.split(",")) for point in line.attrib["points"].split()), strict=True)
    assert ys[0] > ys[1] > ys[2]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_the_command_writes_page_and_plots(tmp_path: Path) -> None:
    for name in RECORDS:
        keep(tmp_path / "results", name)
    arguments = ("--results", str(tmp_path / "results"), "--docs", str(tmp_path / "docs"))
    done = run_python(str(BENCHMARKS / "report.py"), *arguments)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "docs" / "performance.md").read_text()
    written = {path.name for path in (tmp_path / "docs" / "images").iterdir()}
    assert written == {f"perf-{name}.svg" for name in RECORDS if name not in ("lfq", "seams")}
    assert all(f"(images/{name})" in page for name in written)


def test_the_page_in_the_documentation_is_that_of_the_results(report: Any) -> None:
    """After new results, or a change of the generator: ``python benchmarks/report.py``."""
    text, plots = report.page(BENCHMARKS / "results", "images")
    docs = REPOSITORY / "docs"
    assert (docs / "performance.md").read_text(encoding="utf-8") == text
    assert not [
        name for name, drawing in plots.items() if (docs / "images" / name).read_text(encoding="utf-8") != drawing
    ]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_trial_run_gives_a_record_that_the_page_can_show(report: Any, tmp_path: Path, script: str) -> None:
    for package in {"bench_lfq": ["vector_quantize_pytorch"]}.get(script, ["diffusers"]):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{script}.py", "--quick", "--out", tmp_path],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (section,) = (section for section in report.SECTIONS if f"bench_{section.name}" == script)
    record = json.loads((tmp_path / f"{section.name}.json").read_text())
    assert record["quick"] is True
    assert any(block.startswith("|") for block in section.tables(record))
    assert section.plot is None or ET.fromstring(section.plot(record)) is not None
    assert report.provenance(record)
