"""A world is what it says: captions, held-out combinations, files; and what it shows is found again by pixels alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pyratok.data.manifests import gather
from pyratok.data.rendering import RenderConfig, render_clips
from pyratok.data.scenes import render
from pyratok.data.video_io import load_video
from pyratok.data.words import is_unseen
from pyratok.data.world import TINTS, Combination, World, WorldConfig, make_world, open_or_make, place_phrase, tinted
from pyratok.eval.world_truth import Detector, Sight
from tiny_world import NOUNS, tiny_world, world_media


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def test_what_is_shown_is_found_by_pixels(world: World) -> None:
    detector = Detector(world, 48)
    for number in range(8):
        clip, shown = world.clip(3, number, 9, 48, held_out=bool(number % 2))
        assert world.config.is_held_out(shown) == bool(number % 2)
        sight = detector.look(clip.video)
        assert (sight.noun, sight.colour, sight.way) == shown
        assert sight.explained > 0.6
        assert all(word in clip.caption for word in (shown.noun, shown.colour))
        # Backwards it goes the other way; at rest it goes none.
        back = {"left": "right", "right": "left", "up": "down", "down": "up"}
        assert detector.look(clip.video[::-1]).way == back[shown.way]


def test_nothing_is_seen_where_there_is_nothing(world: World) -> None:
    detector = Detector(world, 48)
    clip, _ = world.clip(3, 0, 9, 48)
    still = np.repeat(clip.video[:1], 9, axis=0)
    assert detector.look(still) == Sight(noun=None, colour=None, way=None, explained=0.0)
    noise = np.random.default_rng(0).integers(0, 256, clip.video.shape, dtype=np.uint8)
    assert detector.look(noise).explained < 0.2
    with pytest.raises(ValueError, match=r"expected three or more frames \[T, 48, 48, 3\], got \[2, 48, 48, 3\]"):
        detector.look(still[:2])


@pytest.mark.parametrize("colour", ["white", "red"])
def test_what_lies_over_the_edge_is_what_it_is(world: World, colour: str, tmp_path: Path) -> None:
    pale = tiny_world(tmp_path, replace(world.config, colours=("red", "white", "blue")))
    detector = Detector(pale, 48)
    for noun in NOUNS:
        scene = pale.scene(np.random.default_rng(1), Combination(noun, colour, "left"), 9)
        (item,) = scene.objects
        motion = replace(item.motion, first=replace(item.motion.first, x=0.98), last=replace(item.motion.last, x=0.02))
        sight = detector.look(render(replace(scene, objects=(replace(item, motion=motion),)), 9, 48).video)
        assert (sight.noun, sight.colour, sight.way) == (noun, colour, "left")


def test_clips_are_functions_of_their_number(world: World) -> None:
    one, other = world.clip(0, 5, 5, 32), World(world.folder).clip(0, 5, 5, 32)
    assert (one[1], one[0].caption) == (other[1], other[0].caption)
    assert np.array_equal(one[0].video, other[0].video)
    assert not np.array_equal(one[0].video, world.clip(1, 5, 5, 32)[0].video)


def test_combinations_are_held_out_and_words_are_not(world: World) -> None:
    config = world.config
    apart, shown = (config.combinations(held_out=held) for held in (True, False))
    assert not set(apart) & set(shown)
    assert len(apart) + len(shown) == len(config.nouns) * len(config.colours) * len(config.ways)
    for place, values in enumerate((config.nouns, config.colours, config.ways)):
        assert {combination[place] for combination in shown} == set(values)
    drawn = {world.clip(0, number, 3, 32)[1] for number in range(60)}
    assert not drawn & set(apart)
    with pytest.raises(ValueError, match="no training clip would show"):
        replace(config, held_out=0.99)


def test_bad_worlds_are_refused(world: World, tmp_path: Path) -> None:
    for change, message in (
        ({"colours": ("mauve",)}, "colours are one or more of"),
        ({"ways": ()}, "ways are one or more of"),
        ({"nouns": ()}, "needs a noun and a place"),
        ({"sizes": (0.2, 0.4)}, "sizes are parts"),
        ({"nouns": ("moon", "moon")}, "named twice"),
        ({"held_out": 1.0}, "held_out is a share"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(world.config, **change)
    with pytest.raises(ValueError, match="not a world of pyratok render"):
        World(tmp_path)
    media = gather([world_media(tmp_path / "media")])
    with pytest.raises(ValueError, match="no sprite shows dragon"):
        make_world(tmp_path / "w", media, replace(world.config, nouns=("dragon",)))
    assert not (tmp_path / "w" / "world.json").exists()
    with pytest.raises(ValueError, match="99 things are wanted"):
        open_or_make(tmp_path / "w", [tmp_path / "media"], things=99, places=1)


def test_unseen_nouns_are_not_shown(tmp_path: Path) -> None:
    media = world_media(tmp_path / "media")
    picture = (media / f"{NOUNS[0]}.png").read_bytes()
    unseen = next(noun for noun in ("bell", "kite", "disc") if is_unseen(noun))
    (media / f"{unseen}.png").write_bytes(picture)
    (media / f"{unseen}.txt").write_text(unseen)
    with pytest.raises(ValueError, match=f"no sprite shows {unseen}, or it is not one that training may name"):
        open_or_make(tmp_path / "w", [media], nouns=(unseen,), places=2, held_out=0.0)
    assert open_or_make(tmp_path / "w", [media], nouns=NOUNS[:2], places=2, held_out=0.0).config.nouns == NOUNS[:2]


def test_places_are_chosen_by_their_captions(tmp_path: Path) -> None:
    media = world_media(tmp_path / "media")
    (chosen,) = named = ("a photograph of a pond",)
    world = open_or_make(tmp_path / "w", [media], nouns=NOUNS, named_places=named, held_out=0.0)
    assert world.config.places == named
    rng = np.random.default_rng(0)
    assert world.caption(rng, Combination("moon", "red", "left"), 0).endswith(" in front of a pond")
    assert open_or_make(tmp_path / "w", [media], nouns=NOUNS, named_places=named, held_out=0.0).config == world.config
    with pytest.raises(ValueError, match=f"holds another world.*{chosen}; choose another"):
        open_or_make(tmp_path / "w", [media], nouns=NOUNS, named_places=("a photograph of sand",), held_out=0.0)
    with pytest.raises(ValueError, match="no photograph is a photograph of fog"):
        open_or_make(tmp_path / "v", [media], nouns=NOUNS, named_places=("a photograph of fog",))


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("a photograph of a horse", "a horse"),
        ("a photograph: infinite sea", "the infinite sea"),
        ("chess: a king", "chess: a king"),
    ],
)
def test_a_sentence_names_a_place_without_its_photograph(caption: str, phrase: str) -> None:
    assert place_phrase(caption) == phrase


def test_a_tint_keeps_shape_and_shade() -> None:
    picture = np.zeros((20, 30, 4), np.uint8)
    picture[4:16, 5:25] = (40, 40, 40, 255)
    picture[8:12, 10:20] = (200, 220, 210, 255)
    red = tinted(picture, TINTS["red"])
    assert np.array_equal(red[..., 3], picture[..., 3])
    inside, rim = red[10, 15, :3].astype(int), red[5, 6, :3].astype(int)
    assert inside[0] > 2 * inside[1:].max()
    assert inside[0] > 2 * rim[0] > 0


def test_rendering_goes_on_and_adds(tmp_path: Path) -> None:
    world, config = tiny_world(tmp_path), RenderConfig(clips=3, frames=5, size=32)
    assert render_clips(world, config) == 3
    first = sorted((tmp_path / "clips").iterdir())
    first[1].unlink()
    stamps = [path.stat().st_mtime_ns for path in (first[0], first[2])]
    assert render_clips(world, replace(config, clips=4)) == 2
    assert [path.stat().st_mtime_ns for path in (first[0], first[2])] == stamps
    assert render_clips(world, replace(config, clips=1, seed=7)) == 1
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 5  # those of the first seed are still told
    rows = rows[:4]
    for number, row in enumerate(rows):
        clip, shown = world.clip(0, number, 5, 32)
        assert (row["caption"], Combination(row["noun"], row["colour"], row["way"])) == (clip.caption, shown)
        video = load_video(tmp_path / row["path"]).plain()
        assert video.shape == (1, 3, 5, 32, 32)
        told = (clip.video.astype(np.float32) / 127.5 - 1).transpose(3, 0, 1, 2)
        assert float(np.abs(video[0].numpy() - told).mean()) < 0.06
    with pytest.raises(ValueError, match="clips have 3 or more frames"):
        RenderConfig(frames=2)


def test_places_keep_their_captions(world: World) -> None:
    config = world.config
    assert isinstance(config, WorldConfig)
    for number, caption in enumerate(config.places):
        picture = cv2.imread(str(world.place(number)))
        assert picture.shape == (128, 128, 3)
        # Sand is yellowish, a pond is blue, by the colours they were drawn in.
        blue, red = picture[..., 0].mean(), picture[..., 2].mean()
        assert (red > blue) == (caption == "a photograph of sand")
