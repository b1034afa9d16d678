from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyratok.data.manifests import Entry
from pyratok.data.phrases import VERBS, WORDING, Deed, deed_phrase, describe, is_plural, with_article
from pyratok.data.words import NounIndex, gather_nouns, is_unseen, noun_phrase, split_nouns, without_nouns

WORDS = "disc star cross ring lamp kite drum bell boat tower basket ladder bridge candle mirror bottle".split()
SEEN = [word for word in WORDS if not is_unseen(word) and not is_unseen(f"A {word}.")]
UNSEEN = [word for word in WORDS if is_unseen(word)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def entries(*captions: str) -> list[Entry]:
    return [Entry(path=Path(f"/{number}.png"), caption=caption) for number, caption in enumerate(captions)]


class TestNounPhrase:
    @pytest.mark.parametrize(
        ("caption", "noun"),
        [
            ("A frog.", "frog"),
            ("An albino peahen (a female peafowl, or peacock).", "albino peahen"),
            ("Some blueberries.", "blueberries"),
            ("Our moon as a crescent.", "moon"),
            ("A knight\u2019s helmet.", "knight's helmet"),
            ("A hoverfly resembles a honeybee drone.", "hoverfly"),
            ("Jupiter—the largest planet!", "jupiter"),
            ("A dumper. It carries its load in the front.", "dumper"),
            ("A happy lion!", "happy lion"),
            ("Penguins are winning!", "penguins"),
            ("A “Stop” sign. Stop here.", "stop sign"),
            ("A sword in the stone.", "sword in the stone"),
            ("An astronaut making a spacewalk!", "astronaut making a spacewalk"),
            ("A football used in Australian Rules.", "football"),
            ("A toy from Germany called a “Räuchermännchen”.", "toy from germany"),
            ("Mrs. Claus", "mrs claus"),
            ("beaming face with smiling eyes", "beaming face with smiling eyes"),
            ("thumbs up", "thumbs up"),
            ("object 3", "object 3"),
        ],
    )
    def test_takes_the_noun(self, caption: str, noun: str) -> None:
        assert noun_phrase(caption) == noun

    @pytest.mark.parametrize(
        "caption",
        """|Boom!!!|Eat your broccoli!|Enter the cave.|Eddie the Helicopter.|We remember those who have died.
        |Remember to flush the toilet!|It's a cep, or two?|Down at the docks.|“Hospital”.|5 Japanese yen.|the|...
        |With a fast car, you win.|Small round old red wooden toy train wagon""".split("|"),
    )
    def test_or_nothing(self, caption: str) -> None:
        assert noun_phrase(caption.strip()) == ""

    @pytest.mark.parametrize("caption", ["A frog.", "An albino peahen (a female).", "Mrs. Claus", "sword in the stone"])
    def test_a_noun_is_its_own_noun(self, caption: str) -> None:
        assert noun_phrase(noun_phrase(caption)) == noun_phrase(caption)


class TestSplit:
    def test_the_rule_is_that_of_the_caption(self) -> None:
        seen, unseen = split_nouns(entries(*WORDS))
        assert set(unseen) == set(UNSEEN)
        assert set(seen) == set(WORDS) - set(UNSEEN)
        assert seen[SEEN[0]] == (Path(f"/{WORDS.index(SEEN[0])}.png"),)

    def test_one_unseen_caption_makes_the_noun_unseen(self) -> None:
        word = next(word for word in WORDS if is_unseen(word) != is_unseen(f"A {word}."))
        seen, unseen = split_nouns(entries(word, f"A {word}.", SEEN[0]))
        assert set(seen) == {SEEN[0]}
        assert unseen == {word: (Path("/0.png"), Path("/1.png"))}

    def test_a_noun_that_names_an_unseen_one_is_unseen(self) -> None:
        longer = next(text for n in range(99) if not is_unseen(text := f"{SEEN[0]} {UNSEEN[0]} {'x' * n}".strip()))
        plural = next(text for n in range(99) if not is_unseen(text := f"{'y' * (n + 1)} {UNSEEN[0]}s"))
        seen, unseen = split_nouns(entries(UNSEEN[0], SEEN[0], longer, plural))
        assert set(seen) == {SEEN[0]}
        assert set(unseen) == {UNSEEN[0], longer, plural}
        assert set(split_nouns(entries(SEEN[0], longer, plural))[0]) == {SEEN[0], longer, plural}

    def test_captions_cut_out_of_file_names_are_left_out(self) -> None:
        cut = Entry(path=Path("/set_soccer_ball_ganson_01.png"), caption="soccer ball ganson")
        whole = Entry(path=Path("/kite_01.png"), caption="kite")
        sentence = Entry(path=Path("/set_star_01.png"), caption="A star.")
        assert set(gather_nouns([cut, whole, sentence])) == {"kite", "star"}
        assert set(gather_nouns([cut])) == {"soccer ball ganson"}, "all that there is"

    def test_captions_that_name_nothing_drop_out(self) -> None:
        assert set(gather_nouns(entries("", "Boom!!!", "A kite."))) == {"kite"}


class TestNamesInText:
    def test_whole_words_and_plurals(self) -> None:
        index = NounIndex(["bear", "fire truck"])
        assert index.named_in("Two bears, a fox")
        assert index.named_in("a red fire truck.")
        assert not index.named_in("a bearded man by the fire with a truck")
        assert not NounIndex([]).named_in("a bear")

    def test_captions_of_footage_that_name_one_are_emptied(self) -> None:
        kept = without_nouns(entries("a bear walks", "a fox walks", ""), {"bear": ()})
        assert [entry.caption for entry in kept] == ["", "a fox walks", ""]


class TestArticles:
    @pytest.mark.parametrize(
        "phrase",
        """a frog|an owl|a unicorn|an umbrella|an hourglass|a european bear|a one o'clock|an f-22 raptor|a pair of pants
        |a face with smiling eyes|a woman lifting weights|a bus|an iris|a cocktail glass|a christmas stocking""".split(
            "|"
        ),
    )
    def test_one(self, phrase: str) -> None:
        noun = phrase.strip().split(" ", 1)[1]
        assert not is_plural(noun)
        assert with_article(noun) == phrase.strip()

    @pytest.mark.parametrize(
        "noun", ["musical notes", "eyes", "women with bunny ears", "people hugging", "two flowers"]
    )
    def test_several(self, noun: str) -> None:
        assert is_plural(noun)
        assert with_article(noun) == noun


class TestCaptions:
    def test_a_function_of_the_generator(self) -> None:
        deeds = [Deed("frog", "turns", 1, 9), Deed("owl", "moves left", 3, 7)]
        assert [describe(rng(s), deeds) for s in range(9)] == [describe(rng(s), deeds) for s in range(9)]

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_wording_agrees_in_number(self, verb: str) -> None:
        one = {deed_phrase(rng(s), Deed("frog", verb, 0, 9)) for s in range(60)}
        several = {deed_phrase(rng(s), Deed("eyes", verb, 0, 9)) for s in range(60)}
        assert len({text.split("frog ")[1] for text in one}) == len({finite for finite, _ in WORDING[verb]})
        assert all(text.split("frog ")[1].split()[0].endswith("s") for text in one)
        assert not any(text.split("eyes ")[1].split()[0].endswith("s") for text in several)
        assert not any(mark in text for text in one | several for mark in "{}")

    def test_wording_varies(self) -> None:
        deeds = [Deed("frog", "turns", 1, 9), Deed("owl", "moves left", 3, 7)]
        captions = {describe(rng(s), deeds) for s in range(300)}
        assert len(captions) > 150
        assert all("frog" in caption and "owl" in caption for caption in captions)
        firsts = [caption.index("frog") < caption.index("owl") for caption in captions]
        assert 0.3 < np.mean(firsts) < 0.7

    def test_what_happens_later_is_told_later(self) -> None:
        deeds = [Deed("owl", "grows", 9, 12), Deed("frog", "turns", 1, 5)]
        told = [text for s in range(200) if ", then " in (text := describe(rng(s), deeds))]
        assert len(told) > 50
        assert all(text.index("frog") < text.index("owl") for text in told)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_the_setting_comes_last(self, count: int) -> None:
        deeds = [Deed(noun, "grows", 1, 9) for noun in ("frog", "owl", "eyes")[:count]]
        for seed in range(40):
            text = describe(rng(seed), deeds, "on a lawn")
            assert text.endswith(" on a lawn")
            assert all(deed.noun in text for deed in deeds)

    def test_no_objects(self) -> None:
        with pytest.raises(ValueError, match="at least one object"):
            describe(rng(), [])
