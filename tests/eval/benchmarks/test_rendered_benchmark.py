"""The rendered benchmark, answered by a tokenizer that reads colours: squares in the colours of their names."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from colour_words import COLOURS, THINGS, ColourReader
from pyratok.data.scenes import ObjectTruth
from pyratok.data.words import is_unseen
from pyratok.eval.benchmarks.registry import Options, build
from pyratok.eval.benchmarks.rendered import Rendered, baseline_masks, presence, random_masks
from pyratok.eval.runner import run_benchmark

SMALL = {"clips": "6", "frames": "13", "size": "64", "window": "1"}


@pytest.fixture
def material(tmp_path: Path) -> Path:
    """Squares in the colours of their names, seen and unseen, and a grey photograph."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = ["path,caption"]
    cv2.imwrite(str(folder / "grey.png"), np.full((96, 96, 3), 204, np.uint8))
    for thing, colour in THINGS.items():
        canvas = np.full((40, 40, 4), 255, np.uint8)
        canvas[..., :3] = [round((value + 1) * 127.5) for value in COLOURS[colour]][::-1]
        cv2.imwrite(str(folder / f"{thing}.png"), canvas)
        rows.append(f"{thing}.png,{thing}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    assert [is_unseen(thing) for thing in THINGS] == [True] * 8 + [False] * 8
    return folder


def test_knowing_beats_the_baselines(material: Path, tmp_path: Path) -> None:
    benchmark = build("rendered", material, Options(settings=SMALL))
    record = run_benchmark(benchmark, ColourReader, tmp_path / "out")
    values = record.scores.values
    assert record.scored == 36
    for nouns in ("seen", "unseen"):
        for method in ("random", "centre", "saliency", "colour"):
            assert values[f"jaccard {nouns}, tokens"] > values[f"jaccard {nouns}, {method}"]
        assert f"jaccard {nouns}, tokens with crf" in values
        assert {f"map {nouns}, {method}" for method in ("tokens", "random", "any shot", "whole clip")} <= set(values)
        assert {f"questions {nouns}, {method}" for method in ("tokens", "blind", "random")} <= set(values)
        asked = record.scores.details[nouns]["questions"]
        assert sum(count for _, count in asked.values()) == 6


def test_clips_are_the_same_in_any_order(material: Path, tmp_path: Path) -> None:
    benchmark = build("rendered", material, Options(settings=SMALL))
    items = [item for item in benchmark.load().items if item.index == 0]
    answer = benchmark.run(ColourReader())
    forth = {item.key: answer(item) for item in items}
    back = {item.key: answer(item) for item in reversed(items)}
    assert forth == back


def test_material_is_part_of_the_protocol(material: Path) -> None:
    before = build("rendered", material).protocol.digest
    assert before == build("rendered", material).protocol.digest
    (material / "ring.png").unlink()
    assert build("rendered", material).protocol.digest != before


def test_material_without_unseen_nouns_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "thing.png"), np.full((40, 40, 4), 255, np.uint8))
    (tmp_path / "thing.txt").write_text("a red thing")
    with pytest.raises(ValueError, match=r"no sprite of 4 (un)?seen nouns, only of"):
        build("rendered", tmp_path).load()


def test_what_is_to_be_found_in_time_is_in_one_shot(material: Path) -> None:
    benchmark = build("rendered", material, Options(settings=SMALL))
    assert isinstance(benchmark, Rendered)
    scenes = benchmark._scenes(objects=(1, 2), sizes=benchmark.protocol.large)["seen"]
    for seed in range(5):
        shots, cuts, truths = benchmark._film(scenes, np.random.default_rng(seed))
        assert [len(shot.video) for shot in shots] == np.diff(cuts).tolist()
        for noun, (first, end) in truths.items():
            (own,) = (i for i, shot in enumerate(shots) if noun in {truth.noun for truth in shot.objects})
            assert cuts[own] <= first < end <= cuts[own + 1]


def test_baselines_see_what_stands_out() -> None:
    video = np.full((3, 32, 32, 3), 100, np.uint8)
    video[:, 2:10, 2:10] = (250, 20, 20)
    truth = np.zeros((3, 32, 32), bool)
    truth[:, 2:10, 2:10] = True
    masks = baseline_masks(video)
    assert (masks["saliency"] == truth).all()
    assert (masks["colour"] == truth).all()
    assert masks["centre"].mean() == 0.25


def test_random_masks_deal_out_every_pixel_at_most_once() -> None:
    masks = random_masks(np.random.default_rng(0), 3, (5, 20, 30), (4, 8, 8))
    assert masks.shape == (3, 5, 20, 30)
    assert masks.sum(axis=0).max() == 1
    assert 0.5 < masks.any(axis=0).mean() < 1


def test_presence_is_from_the_first_to_the_last_sight() -> None:
    masks = np.zeros((6, 10, 10), bool)
    masks[2], masks[4] = True, True
    truth = ObjectTruth(noun="box", verb="appears", interval=(1, 2), masks=masks, seen=True)
    assert presence(truth) == (2, 5)
    assert presence(ObjectTruth(noun="box", verb="stays", interval=(0, 6), masks=masks & False, seen=True)) is None
