"""A whole ablation with tiny models: trained, measured, stopped, gone on with, and never done twice."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyratok.data.video_io import VideoError
from pyratok.eval.ablation import MEASURES, AblationRecord
from pyratok.files import alone_in
from pyratok.model.pretrained import from_pretrained
from pyratok.recipes import compare
from pyratok.recipes.ablations import ABLATIONS, with_changes
from pyratok.recipes.compare import hold_out, run_ablation
from tiny import StubText
from tiny_ablation import PROTOCOL, tiny_base, tiny_media, tiny_perceptual, tiny_reading, tiny_start

QUANTIZERS = ABLATIONS["quantizers"]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_media(tmp_path_factory.mktemp("media") / "all")


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_start(tmp_path_factory.mktemp("init") / "model")


def run(media: Path, init: Path, out: Path, steps: int = 2, **options: Any) -> AblationRecord:
    return run_ablation(
        QUANTIZERS,
        tiny_base(steps),
        [media],
        out,
        init=init,
        text_encoder=StubText(),
        perceptual=tiny_perceptual(),
        **{"protocol": PROTOCOL, "seeds": 1, "only": ("full", "rvq"), **options},
    )


def test_results_are_kept_and_unfinished_runs_go_on(
    media: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def stop(record: dict[str, Any]) -> None:
        if len(begun) == 2 and record["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    records: list[AblationRecord] = []
    stopped = run(
        media, init, tmp_path, on_log=stop, on_variant=lambda name, seed: begun.append(name), on_record=records.append
    )
    assert begun == ["full", "rvq"]
    assert [row.variant for row in stopped.rows if row.runs] == ["full"]
    assert len(records) == 2  # the empty table, and the one with the first result

    log: list[int] = []
    whole = run(media, init, tmp_path, on_log=lambda record: log.append(record["step"]))
    assert log == [2]
    rows = {row.variant: row for row in whole.rows}
    assert set(rows) == set(QUANTIZERS.variants)
    for name in ("full", "rvq"):
        (found,) = rows[name].runs
        assert set(found.values) == set(MEASURES)
        assert (found.steps, found.seed) == (2, 0)
    assert {verdict.measure for verdict in rows["rvq"].verdicts} == {"psnr", "ssim", "perceptual"}
    assert rows["vq"].runs == rows["vq"].verdicts == ()
    assert abs(whole.rate_gaps["rvq"]) < 0.05
    assert from_pretrained(tmp_path / "full" / "seed-0" / "model").model_id.name == "tiny"
    assert not list(tmp_path.glob("*/*/checkpoints"))
    assert whole.clips == stopped.clips
    assert len(whole.clips) == 1

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(compare, "train", refuse)
    assert run(media, init, tmp_path).rows == whole.rows
    with pytest.raises(ValueError, match=r"result\.json was made with recipe\.train\.steps = 2, not 3"):
        run(media, init, tmp_path, steps=3)
    other = replace(PROTOCOL, language=replace(PROTOCOL.language, clips=3))
    with pytest.raises(ValueError, match=r"protocol\.language\.clips = 2, not 3"):
        run(media, init, tmp_path, protocol=other)
    (media / "more.jpg").write_bytes((media / "photo.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"media\.photos = 1, not 2"):
        run(media, init, tmp_path)
    (media / "more.jpg").unlink()
    with alone_in(tmp_path), pytest.raises(ValueError, match="another run works in"):
        run(media, init, tmp_path)


def test_held_out_clips_are_not_trained_on(media: Path, init: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"protocol": PROTOCOL, "text_encoder": StubText(), "perceptual": tiny_perceptual()}
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "clip1.mp4").write_bytes((media / "clip1.mp4").read_bytes())
    for val in (None, tmp_path / "val"):
        bench = compare.prepare(tiny_base(), [media], tmp_path, tmp_path, init=init, val=val, **options)
        (clip,) = bench.clips
        assert clip.stem in bench.exclude
        assert clip.stem in compare.seeded(bench, tiny_base(), 0).data.exclude
        assert clip.stem not in {entry.path.stem for entry in bench.media.videos}


def test_holding_out_goes_by_names(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: set[Path] = set()

    def load(path: Path, protocol: object) -> None:
        if path in broken:
            raise VideoError(f"{path}: cut short")

    monkeypatch.setattr(compare, "load_clip", load)
    videos = [Path(f"{index}.mp4") for index in range(30)]
    held = hold_out(videos, PROTOCOL.reconstruction)
    assert len(held) == 3
    assert hold_out(videos[::-1], PROTOCOL.reconstruction) == held
    broken.add(held[0])
    assert hold_out(videos, PROTOCOL.reconstruction)[:2] == held[1:]
    with pytest.raises(ValueError, match=r"1 videos are too few to hold some out; give clips to score with --val"):
        hold_out(videos[:1], PROTOCOL.reconstruction)
    broken.update(videos)
    with pytest.raises(ValueError, match="none of 30 videos can be read"):
        hold_out(videos, PROTOCOL.reconstruction)


def test_heads_read_finished_tokens(media: Path, init: Path, tmp_path: Path) -> None:
    unread = run(media, init, tmp_path / "unread")
    read = run(media, init, tmp_path / "read", reading=tiny_reading())
    for name in ("full", "rvq"):
        one, other = (next(row for row in record.rows if row.variant == name).runs[0] for record in (read, unread))
        assert one.values["psnr"] == other.values["psnr"]  # what comes back from the tokens has not changed
    before, after = (from_pretrained(tmp_path / name / "full" / "seed-0" / "model") for name in ("unread", "read"))
    assert before.model_id == after.model_id
    assert before.digest() != after.digest()  # which tells text heads apart
    assert not (tmp_path / "read" / "full" / "seed-0" / "reading").exists()
    longer = with_changes(tiny_reading(), {"train.steps": 3})
    with pytest.raises(ValueError, match=r"reading\.train\.steps = 2, not 3"):
        run(media, init, tmp_path / "read", reading=longer)


def test_a_head_that_was_stopped_goes_on(
    media: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"reading": tiny_reading(), "only": ("full",)}
    forward = compare.HeadObjective.forward

    def stopping(self: Any, *arguments: Any, **choices: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *arguments, **choices)

    with monkeypatch.context() as patch:
        patch.setattr(compare.HeadObjective, "forward", stopping)
        assert not any(row.runs for row in run(media, init, tmp_path / "stopped", **options).rows)
    assert (
        run(media, init, tmp_path / "stopped", **options).rows == run(media, init, tmp_path / "whole", **options).rows
    )


def test_too_few_nouns_are_refused_before_anything_is_trained(media: Path, init: Path, tmp_path: Path) -> None:
    protocol = replace(PROTOCOL, language=replace(PROTOCOL.language, ways=20))
    with pytest.raises(ValueError, match="a choice of 20 nouns needs more than"):
        compare.prepare(
            tiny_base(), [media], tmp_path, tmp_path, init=init, val=None, protocol=protocol,
            text_encoder=StubText(), perceptual=tiny_perceptual(),
        )  # fmt: skip
