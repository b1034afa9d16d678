"""The order of the paper, judged over seeds, and the page that tells it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pyratok.cli.ablate import ablation_table
from pyratok.eval.ablation import MEASURES, AblationProtocol, AblationRecord, Outline, VariantRun, tabulate
from pyratok.recipes.ablations import ABLATIONS
from pyratok.report.ablation import order_text, render

OUTLINES = {
    "full": Outline(label="full <method>", paper={"psnr": (36.0, 36.0), "perceptual": (0.06, 0.08)}),
    "worse": Outline(label="worse", paper={"psnr": (33.0, 35.0), "perceptual": (0.09, 0.09)}),
    "ours": Outline(label="a row of ours", note="no numbers & none needed"),
}


def variant_run(variant: str, seed: int, psnr: float, perceptual: float = 0.5, rate: float = 0.2) -> VariantRun:
    values = dict.fromkeys(MEASURES, 0.25) | {"psnr": psnr, "perceptual": perceptual}
    return VariantRun(variant=variant, seed=seed, steps=2, parameters=1000, bits_per_pixel=rate, values=values)


def record(*runs: VariantRun) -> AblationRecord:
    return AblationRecord(
        name="components",
        title="What <each> part brings",
        reference="full",
        protocol=AblationProtocol(),
        clips=("a&b.mp4",),
        held_out="one of two",
        seeds=2,
        rows=tabulate(OUTLINES, "full", runs),
    )


def verdicts(*runs: VariantRun) -> dict[str, bool | None]:
    return {v.measure: v.holds for v in record(*runs).rows[1].verdicts}


def test_the_order_is_judged_on_pairs_of_seeds() -> None:
    full = [variant_run("full", 0, 22.0), variant_run("full", 1, 25.0)]
    # The seeds differ by more than the variants, but each pair says the same.
    behind = [variant_run("worse", 0, 21.0, 0.6), variant_run("worse", 1, 24.1, 0.61)]
    assert verdicts(*full, *behind) == {"psnr": True, "perceptual": True}
    ahead = [variant_run("worse", 0, 22.5, 0.4), variant_run("worse", 1, 25.6, 0.3)]
    assert verdicts(*full, *ahead) == {"psnr": False, "perceptual": False}
    mixed = [variant_run("worse", 0, 21.0), variant_run("worse", 1, 25.9)]
    assert verdicts(*full, *mixed) == {"psnr": None, "perceptual": None}


def test_a_single_seed_decides_without_a_spread() -> None:
    table = record(variant_run("full", 0, 22.0, 0.5), variant_run("worse", 0, 21.0, 0.5))
    psnr, perceptual = table.rows[1].verdicts
    assert (psnr.holds, psnr.spread, perceptual.holds) == (True, None, None)
    assert verdicts(variant_run("full", 0, 22.0), variant_run("worse", 1, 21.0)) == {}


def test_lower_is_better_for_a_distance() -> None:
    text = order_text(record(variant_run("full", 0, 22.0, 0.4), variant_run("worse", 0, 21.0, 0.5)).rows[1])
    assert text == "PSNR, dB yes (+1.00), ST-LPIPS yes (+0.100)"


class Check(HTMLParser):
    """Refuses tags that do not match, and anything that is fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name in ("src", "href") and not str(value).startswith("data:") for name, value in attrs)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_and_names_every_row() -> None:
    full = [variant_run("full", 0, 22.0), variant_run("full", 1, 22.1)]
    table = record(*full, variant_run("worse", 0, 23.0, rate=0.3), variant_run("worse", 1, 23.3, rate=0.3))
    page = render(table)
    text = Check(page).text
    assert not re.search(r"https?://|url\(|@import", page)
    for outline in OUTLINES.values():
        assert outline.label in text
        assert outline.note in text
    assert "33 / 35" in text
    assert "It does not hold for: worse, PSNR, dB (no (-1.10 \N{PLUS-MINUS SIGN} 0.14))" in text
    assert "worse (+50.0%)" in text
    assert "a&b.mp4" in text
    json.dumps(table.to_dict(), allow_nan=False)
    assert "a?.mp4" in render(replace(table, clips=("a\udcff.mp4",)))  # a name that is no text


def test_without_the_reference_there_is_no_order() -> None:
    text = Check(render(record(variant_run("worse", 0, 23.0)))).text
    assert "No order yet: it takes a run of full beside those of others." in text


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_has_a_page_before_it_has_numbers(name: str) -> None:
    ablation = ABLATIONS[name]
    empty = replace(record(), name=name, rows=tabulate(ablation.variants, ablation.reference, ()))
    text = Check(render(empty)).text
    assert all(variant.label in text for variant in ablation.variants.values())
    columns, rows = ablation_table(empty)
    assert len(rows) == len(ablation.variants)
    assert {len(row) for row in rows} == {len(columns)}
