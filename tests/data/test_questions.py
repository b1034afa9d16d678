"""Questions about rendered clips: one option is true, and the pixels say so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from drawings import drawing, save_drawing, save_photo
from pyratok.data.captioned import CaptionedMix
from pyratok.data.manifests import Entry
from pyratok.data.questions import (
    COLOURS,
    KINDS,
    NUM_OPTIONS,
    PLACES,
    WAYS,
    Kind,
    Question,
    QuestionedScenes,
    ask_about,
    colour_shares,
    statement,
)
from pyratok.data.scenes import CaptionedClip, ObjectTruth
from pyratok.data.synthetic import CaptionedScenes, SceneConfig
from pyratok.data.words import is_unseen

FRAMES, SIZE = 13, 32
NOUNS = "disc star cross ring lamp kite drum bell boat tower basket ladder".split()
RED, GREEN, BLUE = (220, 20, 20), (20, 200, 40), (30, 60, 220)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def truth(
    noun: str = "frog",
    verb: str = "stays",
    box: tuple[int, int, int, int] = (12, 20, 12, 20),
    interval: tuple[int, int] = (0, FRAMES),
    shift: tuple[int, int] = (0, 0),
) -> ObjectTruth:
    """A rectangle (top, bottom, left, right), moved by ``shift`` (down, right) from frame to frame."""
    masks = np.zeros((FRAMES, SIZE, SIZE), bool)
    top, bottom, left, right = box
    for t in range(FRAMES):
        down, across = t * shift[0], t * shift[1]
        masks[t, top + down : bottom + down, left + across : right + across] = True
    return ObjectTruth(noun=noun, verb=verb, interval=interval, masks=masks, seen=True)


def clip_of(*objects: ObjectTruth, colours: tuple[tuple[int, int, int], ...] = ()) -> CaptionedClip:
    video = np.full((FRAMES, SIZE, SIZE, 3), 90, np.uint8)
    for item, colour in zip(objects, colours, strict=False):
        video[item.masks] = colour
    return CaptionedClip(video=video, caption="", objects=objects)


def answer(clip: CaptionedClip, kind: Kind, seed: int = 0) -> str | None:
    question = ask_about(clip, kind, rng(seed), NOUNS)
    return None if question is None else question.options[question.answer]


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    folder = tmp_path_factory.mktemp("sprites")
    return [Entry(path=save_drawing(folder / f"{noun}.png", kind), caption=noun) for kind, noun in enumerate(NOUNS)]


def questioned(sprites: list[Entry], *kinds: Kind, photos: tuple[Entry, ...] = ()) -> QuestionedScenes:
    config = SceneConfig(nouns=tuple(NOUNS), sizes=(0.25, 0.5))
    return QuestionedScenes(CaptionedScenes(sprites, photos, config=config), kinds or KINDS)


class TestKinds:
    @pytest.mark.parametrize(
        ("box", "place"),
        [
            ((12, 20, 0, 8), "on the left"),
            ((12, 20, 24, 32), "on the right"),
            ((0, 8, 12, 20), "at the top"),
            ((24, 32, 12, 20), "at the bottom"),
            ((12, 20, 12, 20), "in the centre"),
            ((0, 8, 0, 8), None),  # a corner is on two sides
            ((12, 20, 7, 15), None),  # neither in the middle nor on a side
        ],
    )
    def test_where(self, box: tuple[int, int, int, int], place: str | None) -> None:
        assert answer(clip_of(truth(box=box)), "where") == place

    def test_where_is_not_asked_of_what_goes_from_place_to_place(self) -> None:
        assert answer(clip_of(truth(box=(12, 20, 0, 8), shift=(0, 2))), "where") is None

    @pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
    def test_coming_from_a_side_is_moving_to_the_opposite_one(self, side: str) -> None:
        way = dict(zip(("left", "right", "top", "bottom"), WAYS, strict=True))
        opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
        assert answer(clip_of(truth(verb=f"leaves to the {side}")), "direction") == way[side]
        assert answer(clip_of(truth(verb=f"enters from the {side}")), "direction") == way[opposite[side]]

    @pytest.mark.parametrize(("verb", "way"), list(zip(("left", "right", "up", "down"), WAYS, strict=True)))
    def test_direction(self, verb: str, way: str) -> None:
        assert answer(clip_of(truth(verb=f"moves {verb}")), "direction") == way

    @pytest.mark.parametrize("verb", ["stays", "turns", "grows", "bounces", "appears"])
    def test_what_goes_nowhere_has_no_direction(self, verb: str) -> None:
        assert answer(clip_of(truth(verb=verb)), "direction") is None

    @pytest.mark.parametrize(("colour", "name"), [(RED, "red"), (GREEN, "green"), (BLUE, "blue"), ((15,) * 3, "black")])
    def test_colour(self, colour: tuple[int, int, int], name: str) -> None:
        assert answer(clip_of(truth(), colours=(colour,)), "colour") == name

    def test_colour_is_asked_only_where_one_prevails_and_the_name_does_not_tell(self) -> None:
        clip = clip_of(truth(), colours=(RED,))
        half = clip.video.copy()
        half[:, :16][clip.objects[0].masks[:, :16]] = GREEN
        assert answer(CaptionedClip(video=half, caption="", objects=clip.objects), "colour") is None
        assert answer(clip_of(truth(noun="red frog"), colours=(RED,)), "colour") is None
        assert answer(clip_of(truth(), colours=((150, 75, 75),)), "colour") is None, "between red, brown and grey"

    def test_colour_of_what_fades_in_is_that_of_the_opaque_object(self) -> None:
        clip = clip_of(truth(verb="appears", interval=(3, 9)), colours=(RED,))
        clip.video[:8][clip.objects[0].masks[:8]] = GREEN
        assert answer(clip, "colour") == "red"

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_count(self, number: int) -> None:
        clip = clip_of(*(truth(noun, box=(0, 8, 10 * i, 10 * i + 8)) for i, noun in enumerate(NOUNS[:number])))
        assert answer(clip, "count") == ("one", "two", "three")[number - 1]

    def test_several_things_in_one_sprite_are_not_counted(self) -> None:
        assert answer(clip_of(truth("musical notes")), "count") is None

    def test_order(self) -> None:
        early, late = truth("frog", "grows", interval=(1, 4)), truth("owl", "turns", interval=(5, 9))
        still = truth("cat")
        assert answer(clip_of(late, early), "order") == "the frog"
        assert answer(clip_of(late, still, early), "order") == "the frog"
        assert answer(clip_of(early, still), "order") is None, "one alone is not first"
        assert answer(clip_of(early, truth("owl", "turns", interval=(3, 9))), "order") is None, "hardly earlier"

    def test_what(self) -> None:
        question = ask_about(clip_of(truth("star"), truth("owl")), "what", rng(), NOUNS)
        assert question is not None
        assert question.options[question.answer] in ("a star", "an owl")
        assert sum(option in ("a star", "an owl") for option in question.options) == 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_cannot_be_seen_is_not_asked_about(self, kind: Kind) -> None:
        hidden = truth(verb="moves left", box=(12, 12, 12, 12), interval=(1, 4))
        other = truth("owl", "turns", interval=(6, 9), box=(12, 13, 12, 13))
        assert answer(clip_of(hidden, other, colours=(RED, RED)), kind) is None

    @pytest.mark.parametrize("kind", ["what", "where", "colour", "direction", "order"])
    def test_nor_is_what_shares_its_name(self, kind: Kind) -> None:
        twins = [truth(verb="moves left", interval=(s, 12)) for s in (1, 8)]
        assert answer(clip_of(*twins, colours=(RED, RED)), kind) is None


class TestOptions:
    def test_wrong_ones_name_nothing_that_is_there(self) -> None:
        pool = ["frog", "green frogs", "frog prince", "owl", "barn owl", "cat", "boat", "lamp"]
        for seed in range(20):
            question = ask_about(clip_of(truth("tree frog")), "what", rng(seed), pool, setting="a cat on a wall")
            assert question is not None
            wrong = set(question.options) - {"a tree frog"}
            assert wrong in ({"an owl", "a boat", "a lamp"}, {"a barn owl", "a boat", "a lamp"})

    def test_too_few_other_nouns_are_no_question(self) -> None:
        assert ask_about(clip_of(truth()), "what", rng(), ["frog", "owl", "cat"]) is None

    def test_every_option_comes_at_every_place(self) -> None:
        clip = clip_of(truth(box=(12, 20, 0, 8)))
        questions = [ask_about(clip, "where", rng(seed)) for seed in range(80)]
        places = Counter(question.answer for question in questions if question)
        assert sum(places.values()) == 80
        assert min(places[i] for i in range(NUM_OPTIONS)) > 8
        assert {option for question in questions if question for option in question.options} == set(PLACES)
        assert len({question.text for question in questions if question}) > 1

    def test_damaged_questions_are_refused(self) -> None:
        with pytest.raises(ValueError, match="different options"):
            Question(text="?", options=("a", "a", "b", "c"), answer=0, kind="what")
        with pytest.raises(ValueError, match="got 4"):
            Question(text="?", options=("a", "b", "c", "d"), answer=4, kind="what")


class TestStatements:
    @pytest.mark.parametrize(
        ("question", "option", "told"),
        [
            ("Which way does the frog move?", "to the left", "the frog moves to the left"),
            ("Which way do the musical notes move?", "upwards", "the musical notes move upwards"),
            ("Which way is the frog moving?", "upwards", "the frog is moving upwards"),
            ("In which direction does the frog go?", "downwards", "the frog goes downwards"),
            ("Where is the tree frog?", "at the top", "the tree frog is at the top"),
            ("What does the video show?", "an owl", "a video of an owl"),
            ("Which of these is in the picture?", "musical notes", "there are musical notes"),
            ("How many objects are in front of the background?", "one", "there is one object"),
            ("How many objects are in front of the background?", "two", "there are two objects"),
            ("What colour is most of the frog?", "red", "most of the frog is red"),
            ("Which object acts first?", "the police", "the police act first"),
            ("What is he doing?", "Opening a door.", "What is he doing? Opening a door."),
            ("Where is the {noun}?", "", "the {noun} is "),
        ],
    )
    def test_a_sentence_that_agrees(self, question: str, option: str, told: str) -> None:
        assert statement(question, option) == told

    @pytest.mark.parametrize("kind", KINDS)
    def test_all_wordings_have_one(self, kind: Kind) -> None:
        objects = [truth("frog", "moves left", (12, 20, 0, 8), (1, 4)), truth("owl", "turns", (0, 8, 9, 17), (8, 12))]
        for seed in range(30):
            question = ask_about(clip_of(*objects, colours=(RED, RED)), kind, rng(seed), NOUNS)
            assert question is not None
            assert len(set(question.statements)) == NUM_OPTIONS
            for option, told in zip(question.options, question.statements, strict=True):
                assert option in told
                assert "?" not in told
                assert "{" not in told + question.text


class TestColours:
    def test_no_pixel_has_two(self) -> None:
        values = np.array(np.meshgrid(*[np.arange(0, 256, 15)] * 3), np.uint8).reshape(3, -1).T
        total = sum(np.array([colour_shares(pixel[None])[name] for pixel in values]) for name in COLOURS)
        assert total.max() == 1
        assert 0.3 < total.mean() < 0.8, "room between the names"

    def test_nothing_has_none(self) -> None:
        assert set(colour_shares(np.empty((0, 3), np.uint8)).values()) == {0.0}


class TestSource:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_function_of_the_generator(self, kind: Kind, sprites: list[Entry]) -> None:
        source = questioned(sprites, kind)
        first, again = (source.sample_questioned(rng(3), FRAMES, SIZE) for _ in range(2))
        assert first.question == again.question
        assert first.question.kind == kind
        assert np.array_equal(first.clip.video, again.clip.video)

    def test_all_kinds_equally_often(self, sprites: list[Entry]) -> None:
        generator, source = rng(), questioned(sprites)
        kinds = Counter(source.sample_questioned(generator, FRAMES, SIZE).question.kind for _ in range(90))
        assert set(kinds) == set(KINDS)
        assert min(kinds.values()) > 5

    @pytest.mark.parametrize(("kind", "answers"), [("where", PLACES), ("count", ("one", "two", "three"))])
    def test_what_is_usual_is_no_answer(self, kind: Kind, answers: tuple[str, ...], sprites: list[Entry]) -> None:
        source, generator = questioned(sprites, kind), rng()
        questions = [source.sample_questioned(generator, FRAMES, SIZE).question for _ in range(60)]
        true = Counter(question.options[question.answer] for question in questions)
        assert set(true) == set(answers)
        assert max(true.values()) < 2 * 60 / len(answers)

    def test_colours_are_drawn_evenly(self, tmp_path: Path) -> None:
        """Three things are red, all the others blue: half of the answers are red all the same."""
        import cv2

        entries = []
        for number, noun in enumerate(NOUNS):
            colour = RED if number < 3 else BLUE
            cv2.imwrite(str(tmp_path / f"{noun}.png"), drawing(number, colour=colour[::-1]))
            entries.append(Entry(path=tmp_path / f"{noun}.png", caption=noun))
        config = SceneConfig(nouns=tuple(NOUNS), objects=(1, 2), sizes=(0.4, 0.6))
        source, generator = QuestionedScenes(CaptionedScenes(entries, config=config), ["colour"]), rng()
        questions = [source.sample_questioned(generator, FRAMES, SIZE).question for _ in range(40)]
        true = Counter(question.options[question.answer] for question in questions)
        assert set(true) == {"red", "blue"}
        assert min(true.values()) >= 12

    def test_colours_are_those_of_the_drawing(self, tmp_path: Path) -> None:
        import cv2

        entries = []
        for noun, colour in zip(NOUNS, (RED, GREEN, BLUE), strict=False):
            cv2.imwrite(str(tmp_path / f"{noun}.png"), drawing(3, colour=colour[::-1]))
            entries.append(Entry(path=tmp_path / f"{noun}.png", caption=noun))
        config = SceneConfig(nouns=tuple(NOUNS[:3]), objects=(1, 2), sizes=(0.4, 0.6))
        source = QuestionedScenes(CaptionedScenes(entries, config=config), ["colour"])
        named = dict(zip(NOUNS, ("red", "green", "blue"), strict=False))
        for seed in range(12):
            question = source.sample_questioned(rng(seed), FRAMES, SIZE).question
            noun = next(noun for noun in NOUNS[:3] if noun in question.text)
            assert question.options[question.answer] == named[noun]

    def test_a_photograph_s_caption_is_no_wrong_option(self, sprites: list[Entry], tmp_path: Path) -> None:
        caption = " and ".join([f"a {noun}" for noun in NOUNS if not is_unseen(noun)][:4])
        photo = Entry(path=save_photo(tmp_path / "p.jpg"), caption=caption)
        source = questioned(sprites, "what", photos=(photo,))
        source.scenes.backgrounds = {"photos": 1.0}
        for seed in range(10):
            question = source.sample_questioned(rng(seed), FRAMES, SIZE).question
            wrong = {o.split()[1] for i, o in enumerate(question.options) if i != question.answer}
            assert not (wrong & set(caption.split()))

    def test_as_a_source_of_captions_it_tells_the_truth(self, sprites: list[Entry]) -> None:
        source = questioned(sprites)
        question = source.sample_questioned(rng(5), FRAMES, SIZE).question
        assert source.sample_captioned(rng(5), FRAMES, SIZE).caption == question.statements[question.answer]
        mix = CaptionedMix([source], [1.0], frames=FRAMES, size=SIZE, length=2, stride=(4, 8, 8))
        assert mix[0].caption
        assert set(mix.nouns) == set(NOUNS)

    def test_scenes_without_an_answer_are_an_error_that_says_so(self, sprites: list[Entry]) -> None:
        scenes = CaptionedScenes(sprites, config=SceneConfig(nouns=tuple(NOUNS), verbs=("stays",), objects=(1, 1)))
        with pytest.raises(ValueError, match="'direction'; give SceneConfig"):
            QuestionedScenes(scenes, ["direction"]).sample_questioned(rng(), 5, 16)
        with pytest.raises(ValueError, match="one or more of what"):
            QuestionedScenes(scenes, [])
        with pytest.raises(ValueError, match=r"got \['why'\]"):
            QuestionedScenes(scenes, ["why"])  # type: ignore[list-item]
