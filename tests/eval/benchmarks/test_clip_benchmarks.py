"""Kinetics and MVBench on miniatures in their own layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from colour_words import ColourReader, painted
from pyratok.data.video_io import VideoError, save_video
from pyratok.eval.benchmarks.mvbench import TASKS, Segment, centre_frames
from pyratok.eval.benchmarks.registry import Options, build
from pyratok.eval.runner import run_benchmark

FPS = 10.0
FEW = Options(settings={"frames": "5", "size": "64", "fps": "10"})


def save(path: Path, *colours: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_video(painted(list(colours), fps=FPS), path, fps=FPS)
    return path


def kinetics(folder: Path) -> Path:
    """A list with a row of another split, a clip that is missing, one in a folder of its label, one by its id."""
    folder.mkdir()
    rows = [
        "label,youtube_id,time_start,time_end,split",
        "red thing,aaaaaaaaaaa,3,13,val",
        "green thing,bbbbbbbbbbb,0,10,val",
        '"blue thing",ccccccccccc,120,130,val',
        "blue thing,ddddddddddd,1,11,val",
        "white thing,eeeeeeeeeee,1,11,train",
    ]
    (folder / "val.csv").write_text("\n".join(rows) + "\n")
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    save(folder / "val" / "red thing" / "aaaaaaaaaaa_000003_000013.mp4", *["red"] * 6)
    save(folder / "val" / "bbbbbbbbbbb_000000_000010.mp4", *["green"] * 6)
    save(folder / "val" / "ccccccccccc.mp4", *["green"] * 6)
    return folder


@pytest.mark.parametrize("classes", [400, 600, 700])
def test_kinetics(classes: int, tmp_path: Path) -> None:
    name = f"kinetics{classes}"
    benchmark = build(name, kinetics(tmp_path / "data"), FEW)
    with pytest.raises(ValueError, match=f"3 classes where {name} has {classes}"):
        run_benchmark(benchmark, ColourReader, tmp_path / "out")
    record = run_benchmark(benchmark, ColourReader, tmp_path / "out", any_revision=True)
    assert (record.found, record.missing) == (3, ("ddddddddddd_000001_000011",))
    assert record.scores.values == {
        "top1": pytest.approx(2 / 3),
        "top5": 1.0,
        "mean_class_top1": pytest.approx(2 / 3),
        "chance_top1": pytest.approx(1 / 3),
    }


def test_kinetics_without_its_parts(tmp_path: Path) -> None:
    data = kinetics(tmp_path / "data")
    for path in data.rglob("*.mp4"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no video of the 4 in the list.*cvdfoundation"):
        build("kinetics400", data).load()
    with pytest.raises(ValueError, match="rows of split test"):
        build("kinetics400", data, Options(settings={"split": "test"})).load()
    with pytest.raises(ValueError, match="split is one of val, train, test"):
        build("kinetics400", data, Options(settings={"split": "validation"}))
    (data / "val.csv").write_text("label,youtube_id,time_start,time_end,split\nx,y,soon,11,val\n")
    with pytest.raises(ValueError, match=r"val.csv, line 2: times are seconds, got 'soon'"):
        build("kinetics400", data).load()


def test_a_clip_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    data = kinetics(tmp_path / "data")
    (data / "val" / "ccccccccccc.mp4").write_bytes(b"")
    record = run_benchmark(build("kinetics400", data, FEW), ColourReader, tmp_path / "out", any_revision=True)
    assert list(record.unreadable) == ["ccccccccccc_000120_000130"]
    assert record.scored == 2
    assert record.scores.values["top1"] == 1.0


def mvbench(folder: Path) -> Path:
    """Three tasks: a whole video, a part of one, and pictures; and questions whose video is not there."""

    def question(video: str, answer: str, **bounds: float) -> dict[str, object]:
        row = {"video": video, "question": "What is shown?", "candidates": ["red", "green", "blue"], "answer": answer}
        return row | bounds

    tasks = {
        "moving_direction": [question("a.mp4", "red"), question("lost.mp4", "red")],
        "action_sequence": [question("B.mp4", "green", start=1.0, end=2.0)],
        "episodic_reasoning": [question("s01", "blue", start=1.0, end=2.0)],
    }
    (folder / "json").mkdir(parents=True)
    for task, rows in tasks.items():
        (folder / "json" / f"{task}.json").write_text(json.dumps(rows))
    save(folder / "video" / TASKS["moving_direction"] / "a.mp4", *["red"] * 10)
    save(folder / "video" / TASKS["action_sequence"] / "B.mp4", *["red"] * 10, *["green"] * 10, *["red"] * 10)
    pictures = folder / "video" / TASKS["episodic_reasoning"] / "s01"
    pictures.mkdir(parents=True)
    for second, colour in enumerate(("red", "blue", "red")):
        for picture in range(3):
            save_video(painted([colour], 64, 96), pictures / f"{3 * second + picture + 1:05d}.jpg")
    return folder


def test_mvbench(tmp_path: Path) -> None:
    benchmark = build("mvbench", mvbench(tmp_path / "data"), Options(settings={"size": "64"}))
    with pytest.raises(ValueError, match=r"3 tasks where mvbench has 20, 4 questions where mvbench has 4,000"):
        run_benchmark(benchmark, ColourReader, tmp_path / "out")
    record = run_benchmark(benchmark, ColourReader, tmp_path / "out", any_revision=True)
    assert record.missing == ("moving_direction/001: clevrer/video_validation/lost.mp4",)
    assert record.scores.values == {
        "accuracy": 1.0,
        "accuracy_over_questions": 1.0,
        "chance": pytest.approx(1 / 3),
    }
    assert record.scores.details["per_task"] == dict.fromkeys(
        ("action_sequence", "moving_direction", "episodic_reasoning"), 1.0
    )


def test_no_answer_is_a_wrong_one(tmp_path: Path) -> None:
    benchmark = build("mvbench", mvbench(tmp_path / "data"))
    answers = [
        (item, {"option": None if item.task == "action_sequence" else item.answer}) for item in benchmark.load().items
    ]
    assert benchmark.score(answers).values["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("change", [{"answer": "white"}, {"candidates": ["red", "red"]}, {"question": ""}])
def test_a_question_without_one_answer_is_named(change: dict[str, object], tmp_path: Path) -> None:
    data = mvbench(tmp_path / "data")
    path = data / "json" / "moving_direction.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0] | change]))
    with pytest.raises(ValueError, match=r"moving_direction.json: expected a list of items .* exactly one"):
        build("mvbench", data).load()


def test_a_candidate_that_is_there_twice_is_one_choice(tmp_path: Path) -> None:
    data = mvbench(tmp_path / "data")
    path = data / "json" / "moving_direction.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0] | {"candidates": ["Green", "red", "green ", "blue"]}]))
    item = next(item for item in build("mvbench", data).load().items if item.task == "moving_direction")
    assert [item.candidates[item.answer], len(item.candidates)] == ["red", 3]


def test_readers_need_their_files(tmp_path: Path) -> None:
    data = mvbench(tmp_path / "data")
    with pytest.raises(ValueError, match="reader is one of similarity, answerer, tokens, language"):
        build("mvbench", data, Options(settings={"reader": "gpt"}))
    benchmark = build("mvbench", data, Options(settings={"reader": "tokens"}))
    with pytest.raises(ValueError, match="reader=tokens needs its files: --network reader=DIR"):
        benchmark.run(ColourReader())
    (tmp_path / "lm").mkdir()
    plain = build("mvbench", data).protocol.digest
    assert build("mvbench", data, Options(networks={"reader": tmp_path / "lm"})).protocol.digest != plain


def test_frames_are_those_at_the_centres_of_segments(tmp_path: Path) -> None:
    path = save(tmp_path / "x.mp4", *["red"] * 10, *["green"] * 10, *["blue"] * 10)
    whole = centre_frames(path, None, 3, 64).plain()
    assert whole.shape == (1, 3, 3, 64, 64)
    assert whole.mean(dim=(0, 3, 4)).argmax(dim=0).tolist() == [0, 1, 2]
    part = centre_frames(path, Segment(1.0, 2.0), 4, 64).plain()
    assert part.mean(dim=(0, 3, 4)).argmax(dim=0).tolist() == [1, 1, 1, 1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="no picture in it"):
        centre_frames(tmp_path / "empty", None, 4, 64)


def test_pictures_are_cut_to_the_centre(tmp_path: Path) -> None:
    picture = painted(["red"], 64, 96).plain()
    picture[..., :16] = torch.tensor([-0.8, -0.8, 0.9]).view(3, 1, 1, 1)
    for number in range(3):
        save_video(picture, tmp_path / f"{number}.png")
    cut = centre_frames(tmp_path, None, 2, 64).plain()
    assert cut.shape == (1, 3, 2, 64, 64)
    assert cut[:, 0].min() > 0.5
