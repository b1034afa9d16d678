"""YouTube-VIS and OVIS on miniatures in their own layouts, answered by a tokenizer that knows colours."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from colour_words import COLOURS, ColourReader
from pyratok.data.video_io import save_video
from pyratok.eval.benchmarks.registry import Options, build
from pyratok.eval.runner import run_benchmark
from pyratok.metrics.segmentation import Tube

FRAMES, HEIGHT, WIDTH = 3, 64, 96
SMALL = Options(settings={"holdout": "1", "size": "64", "crf": "null", "background": "0.5"})


def box(index: int) -> np.ndarray:
    """Where the object of a video is: bool ``[T, H, W]``, on cells of 8 pixels."""
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=bool)
    masks[:, 16:48, 16 + 8 * index : 48 + 8 * index] = True
    return masks


def write_pictures(folder: Path, masks: np.ndarray, colour: str, first: int, digits: int, prefix: str) -> list[str]:
    folder.mkdir(parents=True)
    names = []
    for number, mask in enumerate(masks, start=first):
        picture = torch.tensor(COLOURS["grey"])[:, None, None].repeat(1, HEIGHT, WIDTH)
        picture[:, torch.from_numpy(mask)] = torch.tensor(COLOURS[colour])[:, None]
        path = folder / f"{prefix}{number:0{digits}d}.jpg"
        save_video(picture[None, :, None], path)
        names.append(f"{folder.name}/{path.name}")
    return names


def make(folder: Path, name: str, split: str = "train", truths: bool = True) -> Path:
    """Three videos: red, green and red objects; classes as the dataset writes them."""
    videos, annotations = [], []
    for index, colour in enumerate(("red", "green", "red")):
        masks = box(index)
        place = folder / split / "JPEGImages" if name == "ytvis21" else folder / split
        style: dict[str, Any] = (
            {"first": 0, "digits": 5, "prefix": ""}
            if name == "ytvis21"
            else {"first": 1, "digits": 7, "prefix": "img_"}
        )
        names = write_pictures(place / f"video{index}", masks, colour, **style)
        size = {"width": WIDTH, "height": HEIGHT, "length": FRAMES}
        videos.append({"id": index + 1, "file_names": names} | size)
        annotations.append(
            {
                "id": index + 1,
                "video_id": index + 1,
                "category_id": 1 + (colour == "green"),
                "segmentations": Tube.from_masks(masks).to_coco(),
                "areas": [1] * FRAMES,
                "bboxes": [None] * FRAMES,
                "iscrowd": 0,
            }
        )
    document = {
        "info": {},
        "videos": videos,
        "annotations": annotations if truths else None,
        "categories": [{"id": 1, "name": "red_thing"}, {"id": 2, "name": "green_thing"}],
    }
    path = folder / split / "instances.json" if name == "ytvis21" else folder / f"annotations_{split}.json"
    path.write_text(json.dumps(document))
    return folder


@pytest.fixture(params=["ytvis21", "ovis"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_known_objects_are_found(name: str, tmp_path: Path) -> None:
    benchmark = build(name, make(tmp_path / "data", name), SMALL)
    record = run_benchmark(benchmark, ColourReader, tmp_path / "out", any_revision=True)
    assert record.scored == record.found == 3
    assert record.scores.values["ap50"] > 0.9
    assert record.scores.values["jaccard"] > 0.6
    assert set(record.scores.details["ap_per_class"]) == {"red thing", "green thing"}
    with zipfile.ZipFile(io.BytesIO((tmp_path / "out" / "results.zip").read_bytes())) as archive:
        predictions = json.loads(archive.read("results.json"))
    assert {prediction["video_id"] for prediction in predictions} == {1, 2, 3}
    assert all(prediction["segmentations"][0]["size"] == [HEIGHT, WIDTH] for prediction in predictions)


def test_masks_that_are_not_public_are_written_and_not_scored(name: str, tmp_path: Path) -> None:
    options = Options(settings={**SMALL.settings, "split": "valid"})
    benchmark = build(name, make(tmp_path / "data", name, "valid", truths=False), options)
    record = run_benchmark(benchmark, ColourReader, tmp_path / "out", any_revision=True, limit=1)
    assert record.scores.values == {}
    assert "submit results.zip" in record.scores.details["note"]
    assert (tmp_path / "out" / "results.zip").exists()


def test_other_revisions_are_told(name: str, tmp_path: Path) -> None:
    videos, classes = ("2,985", 40) if name == "ytvis21" else ("607", 25)
    benchmark = build(name, make(tmp_path / "data", name), SMALL)
    with pytest.raises(
        ValueError, match=f"3 videos where {name} has {videos}, 2 categories where {name} has {classes}"
    ):
        run_benchmark(benchmark, ColourReader, tmp_path / "out")


def test_videos_that_lack_a_frame_are_missing(tmp_path: Path) -> None:
    data = make(tmp_path / "data", "ytvis21")
    (data / "train" / "JPEGImages" / "video1" / "00002.jpg").unlink()
    loaded = build("ytvis21", data, SMALL).load()
    assert [item.key for item in loaded.items] == ["1", "3"]
    assert loaded.missing == ("video1",)
    for folder in (data / "train" / "JPEGImages").iterdir():
        (folder / "00000.jpg").unlink()
    with pytest.raises(ValueError, match=r"no video of which all frames are there, of 3 annotated.*youtube-vos"):
        build("ytvis21", data, SMALL).load()


def test_a_holdout_takes_every_nth_video(tmp_path: Path) -> None:
    options = Options(settings={**SMALL.settings, "holdout": "2"})
    loaded = build("ovis", make(tmp_path / "data", "ovis"), options).load()
    assert [item.key for item in loaded.items] == ["1", "3"]
    assert loaded.counts["videos"] == 3


def test_damaged_annotations_are_named(tmp_path: Path) -> None:
    data = make(tmp_path / "data", "ovis")
    path = data / "annotations_train.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"annotations_train.json: not annotations with videos"):
        build("ovis", data, SMALL).load()
    path.unlink()
    with pytest.raises(ValueError, match=r"no annotation file annotations_train.json or .*songbai.site"):
        build("ovis", data, SMALL).load()


def test_masks_of_another_length_are_named(tmp_path: Path) -> None:
    data = make(tmp_path / "data", "ovis")
    path = data / "annotations_train.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentations"].pop()
    path.write_text(json.dumps(document))
    benchmark = build("ovis", data, SMALL)
    answers = [(item, {"predictions": []}) for item in benchmark.load().items]
    with pytest.raises(ValueError, match="a mask of video 1 has 2 frames, the video 3"):
        benchmark.score(answers)


def test_truths_as_predictions_are_perfect(tmp_path: Path) -> None:
    benchmark = build("ovis", make(tmp_path / "data", "ovis"), SMALL)
    answers = []
    for item in benchmark.load().items:
        claims = [
            {"category_id": t["category_id"], "segmentations": t["segmentations"], "score": 1.0} for t in item.truths
        ]
        answers.append((item, {"predictions": claims}))
    values = benchmark.score(answers).values
    assert values == {"ap": 1, "ap50": 1, "ap75": 1, "ar1": 1, "ar10": 1, "jaccard": 1}
    nothing = benchmark.score([(item, {"predictions": []}) for item, _ in answers]).values
    assert set(nothing.values()) == {0}


def test_the_crf_is_part_of_the_protocol(tmp_path: Path) -> None:
    digests = set()
    for text in ("null", "{}", '{"iterations": 3}'):
        digests.add(build("ovis", tmp_path, Options(settings={"crf": text})).protocol.digest)
    assert len(digests) == 3
    assert build("ovis", tmp_path).protocol.digest in digests
    with pytest.raises(ValueError, match="crf takes null or some of its fields"):
        build("ovis", tmp_path, Options(settings={"crf": "3"}))
