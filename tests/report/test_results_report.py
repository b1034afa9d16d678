"""The page of results from every shape of record that the commands write."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from pyratok.cli.common import plain
from pyratok.eval.ablation import AblationProtocol, AblationRecord, Outline, VariantRun, tabulate
from pyratok.eval.benchmarks.compression import CompressionProtocol
from pyratok.eval.benchmarks.contract import BenchmarkProtocol, BenchmarkRecord, Scores
from pyratok.eval.benchmarks.reconstructed import ReconstructedProtocol
from pyratok.eval.benchmarks.registry import ENTRIES
from pyratok.eval.benchmarks.rendered import RenderedProtocol
from pyratok.eval.benchmarks.world import WorldProtocol
from pyratok.eval.codebook_usage import UsageProtocol, UsageRecord
from pyratok.eval.language import LanguageProtocol, LanguageRecord, Score
from pyratok.eval.predictability import LevelBits, PredictabilityProtocol, PredictabilityRecord
from pyratok.eval.reconstruction import ClipScore, EvalProtocol, PrefixScore, ReconstructionRecord
from pyratok.quantization.usage import CodebookUsage
from pyratok.report.png import encode_png
from pyratok.report.results import render
from pyratok.report.results_measures import describe
from pyratok.report.results_plots import rate_distortion_svg, rate_ticks
from pyratok.report.results_records import ResultError, digest_of, read_results
from pyratok.report.results_tables import claims, group_results, latex, to_csv, to_latex
from pyratok.types import ModelId

NANO, OTHER = ModelId(name="nano", fingerprint="0" * 16), ModelId(name="other", fingerprint="1" * 16)
VOID = "area br col embed hr img input link meta source wbr circle line polyline rect".split()


def benchmark(
    protocol: BenchmarkProtocol,
    values: dict[str, float],
    model: ModelId | None = NANO,
    details: dict[str, Any] | None = None,
    **changed: Any,
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "weights": "a" * 16,
        "counts": {"clips": 5},
        "expected": {},
        "found": 4,
        "missing": ("<gone>.mp4",),
        "unreadable": {},
        "scored": 4,
        "limit": None,
    }
    scores = Scores(values=values, details=details or {})
    return BenchmarkRecord(protocol=protocol, model=model, scores=scores, **(fields | changed)).to_dict()


def webvid(psnr: float = 30.0, model: ModelId = NANO, size: int = 256) -> dict[str, Any]:
    protocol = ReconstructedProtocol(benchmark="webvid", size=size)
    return benchmark(protocol, {"bits_per_pixel": 0.25, "psnr": psnr, "ssim": 0.9, "st_lpips": 0.1}, model)


def compression(model: ModelId = NANO) -> dict[str, Any]:
    def curve(shift: float) -> list[dict[str, float]]:
        return [{"bits_per_pixel": 0.05 * 2**i, "psnr": 30 + 2 * i + shift, "ssim": 0.9 + 0.02 * i} for i in range(4)]

    details = {"curves": {"pyra": curve(-4), "x265": curve(0)}, "no_bd_rate_to_x264": "too few"}
    return benchmark(CompressionProtocol(), {"bits_per_pixel": 0.4, "psnr": 32.0, "ssim": 0.96}, model, details)


def reconstruction() -> dict[str, Any]:
    prefixes = tuple(
        PrefixScore(levels=n, bits_per_pixel=0.1 * n, psnr=20.0 + n, ssim=0.8, x265_psnr=None if n == 1 else 30.0)
        for n in (1, 2)
    )
    clip = ClipScore(clip="a.mp4", frames=9, height=64, width=64, prefixes=prefixes)
    return ReconstructionRecord(protocol=EvalProtocol(), model=NANO, clips=(clip,)).to_dict()


def language(model: ModelId = NANO, value: float = 0.5) -> dict[str, Any]:
    scores = (
        Score(name="classification", nouns="seen", value=value, count=20, baselines={"chance": 0.05}),
        Score(name="pointing", nouns="seen", value=0.25, count=9, baselines={"centre": 0.125}),
    )
    return LanguageRecord(protocol=LanguageProtocol(), model=model, scores=scores).to_dict()


def usage() -> dict[str, Any]:
    counted = CodebookUsage(2, 4)
    counted.update([torch.arange(16), torch.arange(8)])
    return UsageRecord(protocol=UsageProtocol(), model=NANO, clips=3, usage=counted.summary()).to_dict()


def predictability() -> dict[str, Any]:
    level = LevelBits(level=1, predicted={"right caption": 8.5}, unigram=13.0, independent=15.5)
    protocol = PredictabilityProtocol()
    return PredictabilityRecord(protocol=protocol, model=NANO, nouns="seen", levels=(level,)).to_dict()


def ablation() -> dict[str, Any]:
    outlines = {
        "full": Outline(label="full & whole", paper={"psnr": (35.72, 36.05)}),
        "less": Outline(label="less", paper={"psnr": (31.5, 31.25)}),
    }
    runs = [
        VariantRun(variant=name, seed=seed, steps=1, parameters=2, bits_per_pixel=0.25, values={"psnr": 20.0 + seed})
        for name, seeds in (("full", 2), ("less", 1))
        for seed in range(seeds)
    ]
    return AblationRecord(
        name="components",
        title="What <each> brings",
        reference="full",
        protocol=AblationProtocol(),
        clips=("a.mp4",),
        held_out="one",
        seeds=2,
        rows=tabulate(outlines, "full", runs),
    ).to_dict()


def write(folder: Path, **records: Any) -> list[Path]:
    """As ``--json`` does."""
    paths = [folder / f"{name}.json" for name in records]
    for path, record in zip(paths, records.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain(record)))
    return paths


def every_shape() -> dict[str, Any]:
    rendered = {"jaccard seen, tokens": 0.3, "jaccard seen, tokens with crf": 0.4, "jaccard seen, centre": 0.2}
    shapes = {
        "webvid": webvid(),
        "compression": compression(),
        "rendered": benchmark(RenderedProtocol(), rendered),
        "ytvis": benchmark(BenchmarkProtocol(benchmark="ytvis21"), {}, details={"note": "masks <are> not public"}),
        "fvd": benchmark(BenchmarkProtocol(benchmark="webvid-t2v"), {"fvd": 400.0}, model=None, weights=None),
    }
    ours = (reconstruction(), language(), usage(), predictability(), ablation())
    return shapes | {f"ours{index}": record for index, record in enumerate(ours)}


def page(records: Mapping[str, Any], folder: Path) -> str:
    return render(*read_results(write(folder, **records)))


class Tags(HTMLParser):
    """Whether every tag is closed, and what the page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [v or "" for name, v in attrs if name in ("src", "href") and not (v or "").startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    return tags


def test_every_shape_is_on_the_page_which_needs_nothing_beside_it(tmp_path: Path) -> None:
    records = every_shape()
    text = page(records, tmp_path)
    tags = parsed(text)
    assert all(address.startswith("data:") for address in tags.fetched)
    assert not re.search(r"url\(|@import|<script|<link rel=.stylesheet", text)
    said = " ".join(tags.text)
    for record in records.values():
        assert record["protocol"]["benchmark"].replace("ablation", "ablation: components") in said
        digest = record["protocol"].get("digest", digest_of(record["protocol"]))
        assert digest in said
    for words in ("masks <are> not public", "<gone>.mp4", "full & whole", "What <each> brings", "No BD-rate to x264"):
        assert words in said
    assert "<each>" not in text
    assert torch.__version__ in said


def test_the_hash_is_that_of_the_protocols() -> None:
    for protocol in (EvalProtocol(), RenderedProtocol(), AblationProtocol(), CompressionProtocol()):
        fields = json.loads(json.dumps(protocol.to_dict()))
        assert digest_of({k: v for k, v in fields.items() if k != "digest"}) == fields.pop("digest")


def test_models_stand_side_by_side_and_the_paper_beside_them(tmp_path: Path) -> None:
    paths = write(tmp_path, a=webvid(30.125), b=webvid(31.5, OTHER))
    (group,) = group_results(read_results(paths)[0])["webvid"]
    measured, paper = group.tables
    assert measured.heads == ("measure", "nano", "other")
    assert ["PSNR, dB", "30.12", "31.50"] in measured.rows
    assert ["items missing", "1", "1"] in measured.rows
    # What stands in for LPIPS is not set beside it.
    assert paper.heads == ("method", "PSNR, dB", "SSIM", "LPIPS")
    assert paper.rows[:3] == [
        ["nano", "30.12", "0.900", "-"],
        ["other", "31.50", "0.900", "-"],
        ["PyraTok (paper)", "35.72", "0.879", "0.066"],
    ]
    assert len(paper.rows) == 2 + 12


def test_shares_are_in_percent_as_in_the_paper(tmp_path: Path) -> None:
    record = benchmark(BenchmarkProtocol(benchmark="ytvis21"), {"ap": 0.2454, "ap50": 0.5, "jaccard": 0.5})
    (group,) = group_results(read_results(write(tmp_path, a=record))[0])["ytvis21"]
    assert ["AP, %", "24.54"] in group.tables[0].rows
    assert group.tables[1].rows[:2] == [["nano", "24.54", "50.00"], ["PyraTok (paper)", "24.54", "66.56"]]


def test_other_protocols_are_in_other_tables_which_say_so(tmp_path: Path) -> None:
    paths = write(tmp_path, a=webvid(), b=webvid(29.0, OTHER, size=512))
    results, _ = read_results(paths)
    first, second = group_results(results)["webvid"]
    assert first.digest != second.digest
    assert (first.labels, second.labels) == (("nano",), ("other",))
    said = " ".join(parsed(render(results)).text)
    assert "2 protocols: the tables below may not be compared with each other. They differ in size." in " ".join(
        said.split()
    )


def test_baselines_stand_once_and_variants_beside_their_model(tmp_path: Path) -> None:
    values = {"jaccard seen, tokens": 0.3, "jaccard seen, tokens with crf": 0.4, "jaccard seen, centre": 0.2}
    values |= {"questions seen, tokens": 0.5, "questions seen, blind": 0.25}
    one = benchmark(RenderedProtocol(), values | {"jaccard seen, random": 0.1})
    other = benchmark(RenderedProtocol(), values | {"jaccard seen, random": 0.12}, OTHER)
    (group,) = group_results(read_results(write(tmp_path, a=one, b=other))[0])["rendered"]
    models = ("nano", "nano with crf", "nano blind", "other", "other with crf", "other blind")
    assert group.tables[0].heads == ("measure", *models, "centre", "random", "random (other)")
    assert group.tables[0].rows[0][:3] == ["Jaccard, seen, %", "30.00", "40.00"]


def test_priors_that_are_asked_the_same_stand_side_by_side(tmp_path: Path) -> None:
    values = {"noun": 0.75, "noun, shuffled": 0.0625, "fd": 1.5}
    one, other = (benchmark(WorldProtocol(prior=name * 16, shards=name * 16), values) for name in "ab")
    far = benchmark(WorldProtocol(prior="c" * 16, prompts=50), values)
    groups = group_results(read_results(write(tmp_path, a=one, b=other, c=far))[0])["world"]
    assert [len(group.results) for group in groups] == [2, 1]
    assert groups[0].labels == ("nano 00000000 aaaaaaaa", "nano 00000000 bbbbbbbb")
    assert groups[0].tables[0].rows[0][:3] == ["right thing, %", "75.0", "75.0"]


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    again = ModelId(name="nano", fingerprint="2" * 16)
    (group,) = group_results(read_results(write(tmp_path, a=webvid(), b=webvid(29.0, again)))[0])["webvid"]
    assert group.labels == ("nano 00000000", "nano 22222222")
    (group,) = group_results(read_results(write(tmp_path / "same", a=webvid(), b=webvid(29.0)))[0])["webvid"]
    assert group.labels == ("nano (same/a.json)", "nano (same/b.json)")


def test_an_ablation_has_its_spread_and_the_papers_numbers(tmp_path: Path) -> None:
    (group,) = group_results(read_results(write(tmp_path, a=ablation()))[0])["ablation: components"]
    measured, paper = group.tables
    assert measured.rows == [["full & whole", "0.2500", "20.50 \N{PLUS-MINUS SIGN} 0.71"], ["less", "0.2500", "20.00"]]
    assert paper.heads == ("method", "PSNR, COCO", "PSNR, WebVid")
    assert paper.rows[0] == ["full & whole", "35.72", "36.05"]


def test_numbers_that_are_not_there_are_dashes(tmp_path: Path) -> None:
    record = language(value=math.nan)
    (group,) = group_results(read_results(write(tmp_path, a=record))[0])["language"]
    assert ["classification, seen nouns, %", "-", "5.0", "-"] in group.tables[0].rows
    (group,) = group_results(read_results(write(tmp_path, b=reconstruction()))[0])["reconstruction"]
    assert ["PSNR, dB, 1 level", "21.00", "-"] in group.tables[0].rows
    assert ["PSNR, dB, 2 levels", "22.00", "30.00"] in group.tables[0].rows


def test_csv_has_the_numbers_of_the_page(tmp_path: Path) -> None:
    results, _ = read_results(write(tmp_path, **every_shape()))
    groups = [group for members in group_results(results).values() for group in members]
    rows = list(csv.DictReader(io.StringIO(to_csv(groups))))
    found = {(r["benchmark"], r["table"], r["method"], r["measure"]): float(r["value"]) for r in rows}
    assert len(found) == len(rows)
    cells = 0
    for group in groups:
        for table in group.tables:
            for measure, row in table:
                for method, value in row.items():
                    key = (group.benchmark, table.title, method, measure.label)
                    assert found[key] == pytest.approx(value.mean * measure.scale)
                    cells += 1
    assert cells == len(rows)


def test_latex_has_the_rows_of_the_page(tmp_path: Path) -> None:
    results, _ = read_results(write(tmp_path, **every_shape()))
    groups = [group for members in group_results(results).values() for group in members]
    text = to_latex(groups)
    for group in groups:
        for table in group.tables:
            for row in (table.heads, *table.rows):
                assert f"\n{' & '.join(map(latex, row))} \\\\\n" in text
    tables = sum(len(group.tables) for group in groups)
    for word in ("\\toprule", "\\midrule", "\\bottomrule", "\\begin{tabular}", "\\end{table}"):
        assert text.count(word) == tables
    assert not re.search(r"(?<!\\)[%_#](?!.*usepackage)", text.split("\n", 1)[1])
    assert latex("50 % of a_b & {c}") == "50 \\% of a\\_b \\& \\{c\\}"


def test_folders_give_their_records_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "evaluation-webvid"
    write(run, record=webvid(), run={"protocol": {}}, predictions={})
    write(tmp_path / "runs", copied=webvid(), usage=usage())
    results, _ = read_results([tmp_path / "runs"])
    assert sorted(result.benchmark for result in results) == ["codebook-usage", "webvid"]
    assert [result.benchmark for result in read_results([run])[0]] == ["webvid"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "no JSON, or a damaged one"),
        ("\x00\xff", "no JSON, or a damaged one"),
        ("[]", "this is no result"),
        ('{"protocol": {"benchmark": "webvid"}}', "this is no result"),
        ('{"protocol": {"benchmark": "webvid"}, "scores": {}, "items": {}}', "a damaged result"),
        ('{"protocol": {}, "mean": []}', "a damaged result"),
        ('{"protocol": 3, "usage": 4}', "a damaged result"),
        ('{"input": "a.mp4", "output": "gone.svg", "model": {"name": "nano"}}', "gone.svg, is not there"),
    ],
)
def test_what_is_none_of_ours_is_refused_by_name(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ResultError, match=rf"some\.json: .*{complaint}"):
        read_results([path])


def test_changed_protocols_and_empty_folders_are_refused(tmp_path: Path) -> None:
    record = webvid()
    record["protocol"]["size"] = 128
    (path,) = write(tmp_path, a=record)
    with pytest.raises(ResultError, match=r"a\.json: the protocol's hash is .* it was changed"):
        read_results([path])
    with pytest.raises(ResultError, match=r"gone\.json: No such file"):
        read_results([tmp_path / "gone.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultError, match="empty: there is no result in this folder"):
        read_results([tmp_path / "empty"])


def test_pictures_come_along(tmp_path: Path) -> None:
    pixels = torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()
    (tmp_path / "masks.png").write_bytes(encode_png(pixels))
    facts = {"input": "in <1>.mp4", "output": "elsewhere/masks.png", "model": {"name": "nano", "fingerprint": "0"}}
    paths = write(tmp_path, masks=facts | {"words": [{"word": "a frog"}, {"word": "a car"}]})
    tags = parsed(render(*read_results(paths)))
    assert any(address.startswith("data:image/png;base64,") for address in tags.fetched)
    said = " ".join(tags.text)
    assert "in <1>.mp4" in said
    assert "a frog, a car" in said
    (tmp_path / "found.html").write_text("<p>")
    paths = write(tmp_path, found=facts | {"output": "found.html"})
    with pytest.raises(ValueError, match=r"found\.html cannot be put into a page; what can: \.svg"):
        render(*read_results(paths))


def test_the_papers_tables_are_whole() -> None:
    found = claims()
    assert "2601.16210" in found["source"]
    for name, claim in found["benchmarks"].items():
        assert name in {*ENTRIES, "codebook-usage"}
        assert claim["from"].startswith(("Table", "Figure"))
        assert all(len(row) == len(claim["measures"]) for row in claim["rows"].values())
        assert any("PyraTok" in row for row in claim["rows"])


def test_curves_are_one_svg_file() -> None:
    curves = compression()["details"]["curves"]
    drawn = ElementTree.fromstring(rate_distortion_svg(curves))
    names = ["".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for name in ("pyratok", "x265", "PSNR, dB over bits per pixel", "SSIM over bits per pixel"):
        assert name in names
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))) == 2 * 2 * 4
    alone = {"pyra": curves["pyra"][:1]}
    assert ElementTree.fromstring(rate_distortion_svg(alone)) is not None


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.9), (0.034, 0.034), (0.3, 0.4), (1, 24)])
def test_rates_have_round_ticks_between_them(low: float, high: float) -> None:
    ticks = rate_ticks(low, high)
    assert ticks == sorted(ticks)
    assert ticks
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("ap50", "AP50, %"),
        ("map_at_0.3", "mAP at tIoU 0.3, %"),
        ("jaccard seen", "Jaccard, seen, %"),
        ("top1", "top-1, %"),
        ("bd_rate_percent_to_x265_by_ssim", "BD-rate to x265 by SSIM, %"),
        ("bd_psnr_to_x264", "BD-PSNR to x264, dB"),
        ("some_new_number", "some new number"),
    ],
)
def test_numbers_have_names_for_people(key: str, label: str) -> None:
    assert describe(key).label == label
