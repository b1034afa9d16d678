"""What tokens say of their video, asked in words: classification, retrieval and pointing on rendered clips.

Every clip is rendered with exact truth (:mod:`pyratok.data.synthetic`) and tokenised without its caption. Chance,
and for pointing two baselines that see no token, stand beside the numbers. Nouns that training never showed or named
are reported apart.

Source: zero-shot uses, PyraTok (arXiv 2601.16210), sec. 4; the rendered benchmark is ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyratok.data.captioned import pool_masks
from pyratok.data.datasets import to_signed
from pyratok.data.scenes import CaptionedClip, render
from pyratok.data.synthetic import CaptionedScenes, SceneConfig
from pyratok.eval.base import HashedProtocol, versions
from pyratok.tasks.classification import clip_vectors
from pyratok.types import ModelId, TokenPyramid

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class LanguageProtocol(HashedProtocol):
    """Everything that decides the numbers, but the sprites and photographs that clips are rendered from.

    ``clips`` per measure and split, of ``frames x size x size``; classification among ``ways`` nouns, one large object
    (``large``: its longer side in parts of the frame's); pointing among 2 or 3 objects (``small``).
    """

    benchmark: str = "language"
    clips: int = 200
    ways: int = 20
    frames: int = 17
    size: int = 96
    large: tuple[float, float] = (0.5, 0.8)
    small: tuple[float, float] = (0.3, 0.5)
    batch_size: int = 8
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """A share of ``count`` questions answered right, in [0, 1], and what it is to be held against."""

    name: str
    nouns: str
    value: float
    count: int
    baselines: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LanguageRecord:
    protocol: LanguageProtocol
    model: ModelId
    scores: tuple[Score, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "protocol": self.protocol.to_dict(),
            "model": asdict(self.model),
            "versions": versions(),
            "scores": [asdict(score) for score in self.scores],
        }


def evaluate_language(
    tokenizer: VideoTokenizer,
    scenes: Callable[[SceneConfig], CaptionedScenes],
    protocol: LanguageProtocol,
    on_step: Callable[[str], None] = lambda name: None,
) -> LanguageRecord:
    """All measures; ``scenes`` makes a source of clips, from whatever sprites and photographs there are."""
    scores: list[Score] = []
    for nouns in ("seen", "unseen"):
        one = SceneConfig(nouns=nouns, objects=(1, 1), sizes=protocol.large)
        some = SceneConfig(nouns=nouns, objects=(2, 3), sizes=protocol.small)
        on_step(f"classification, {nouns} nouns")
        scores += classification(tokenizer, scenes(one), protocol, nouns)
        on_step(f"pointing, {nouns} nouns")
        scores.append(pointing(tokenizer, scenes(some), protocol, nouns))
    on_step("retrieval, seen nouns")
    scores += retrieval(tokenizer, scenes(SceneConfig(objects=(1, 1), sizes=protocol.large)), protocol)
    return LanguageRecord(protocol=protocol, model=tokenizer.model_id, scores=tuple(scores))


def classification(
    tokenizer: VideoTokenizer, source: CaptionedScenes, protocol: LanguageProtocol, nouns: str
) -> list[Score]:
    """Which of ``ways`` nouns is shown? Asked of tokens without a caption, and of tokens given a wrong one.

    The second is the caption-leak check: a wrong caption must not help. Its share of changed bits comes third.
    """
    rng = np.random.default_rng((protocol.seed, 1))
    right = wrong = changed = 0.0
    for start in range(0, protocol.clips, protocol.batch_size):
        count = min(protocol.batch_size, protocol.clips - start)
        clips = [source.sample_captioned(rng, protocol.frames, protocol.size) for _ in range(count)]
        shown = [clip.objects[0].noun for clip in clips]
        others = [_others(rng, source.nouns, noun, protocol.ways - 1) for noun in shown]
        video = to_video(clips)
        plain = tokenizer.encode(video)
        # The caption names an object that is not there, and is among the choices.
        misled = tokenizer.encode(video, [f"a {choices[0]}" for choices in others])
        right += _num_right(tokenizer, plain, shown, others)
        wrong += _num_right(tokenizer, misled, shown, others)
        changed += changed_bits(plain, misled) * count
    chance = {"chance": 1 / protocol.ways}
    total = protocol.clips
    return [
        Score(name="classification", nouns=nouns, value=right / total, count=total, baselines=chance),
        Score(name="classification, wrong caption", nouns=nouns, value=wrong / total, count=total, baselines=chance),
        Score(name="bits changed by a wrong caption", nouns=nouns, value=changed / total, count=total, baselines={}),
    ]


def retrieval(tokenizer: VideoTokenizer, source: CaptionedScenes, protocol: LanguageProtocol) -> list[Score]:
    """Find the clip by its caption among clips that each show another noun: recall at 1 and at 5."""
    rng = np.random.default_rng((protocol.seed, 2))
    count = min(protocol.clips, len(source.nouns))
    shown = [str(noun) for noun in rng.permutation(np.array(source.nouns, dtype=object))[:count]]
    vectors, captions = [], []
    for start in range(0, count, protocol.batch_size):
        batch = shown[start : start + protocol.batch_size]
        rendered = [source.scene(rng, protocol.frames, [noun]) for noun in batch]
        clips = [render(scene, protocol.frames, protocol.size) for scene in rendered]
        captions += [clip.caption for clip in clips]
        vectors.append(clip_vectors(tokenizer, tokenizer.encode(to_video(clips))))
    similarity = tokenizer.embed_text(captions) @ torch.cat(vectors).T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    return [
        Score(
            name=f"retrieval, recall at {k}",
            nouns="seen",
            value=float((rank < k).float().mean()),
            count=count,
            baselines={"chance": k / count},
        )
        for k in (1, 5)
    ]


def pointing(tokenizer: VideoTokenizer, source: CaptionedScenes, protocol: LanguageProtocol, nouns: str) -> Score:
    """Does the peak of the cosine map of the last level against a noun lie in that object, of two or three?

    Right is a token of which the object covers more than half. Baselines: the centre of the middle frame, and the
    largest object whatever is asked for.
    """
    rng = np.random.default_rng((protocol.seed, 3))
    asked, hits, centre, largest = 0, 0, 0, 0
    for start in range(0, protocol.clips, protocol.batch_size):
        count = min(protocol.batch_size, protocol.clips - start)
        clips = [source.sample_captioned(rng, protocol.frames, protocol.size) for _ in range(count)]
        spaces = tokenizer.text_space(tokenizer.encode(to_video(clips)))
        for clip, space in zip(clips, spaces, strict=True):
            stride = tokenizer.strides[-1]
            masks = pool_masks(torch.from_numpy(np.stack([o.masks for o in clip.objects])), stride) > 0.5
            areas = masks.flatten(1).sum(1)
            t, h, w = masks.shape[1:]
            for index, truth in enumerate(clip.objects):
                if not areas[index]:
                    continue  # never more than half of any token: there is no right answer
                similarity = space @ tokenizer.embed_text([truth.noun])[0]
                asked += 1
                hits += int(masks[index].flatten()[similarity.argmax()])
                centre += int(masks[index, t // 2, h // 2, w // 2])
                largest += int(int(areas.argmax()) == index)
    baselines = {"centre": centre / asked, "largest object": largest / asked}
    return Score(name="pointing", nouns=nouns, value=hits / asked, count=asked, baselines=baselines)


def changed_bits(a: TokenPyramid, b: TokenPyramid) -> float:
    """Share of the bits of two pyramids of one shape that differ."""
    different = total = 0
    for first, second in zip(a.levels, b.levels, strict=True):
        differences = first ^ second
        different += sum(int((differences >> bit & 1).sum()) for bit in range(a.num_bits))
        total += first.numel() * a.num_bits
    return different / total


def to_video(clips: Sequence[CaptionedClip]) -> Tensor:
    """Clips as one batch ``[B, 3, T, S, S]`` in [-1, 1]."""
    return to_signed(torch.from_numpy(np.stack([clip.video for clip in clips])).movedim(-1, 1))


def _num_right(
    tokenizer: VideoTokenizer, tokens: TokenPyramid, shown: Sequence[str], others: Sequence[Sequence[str]]
) -> int:
    vectors = clip_vectors(tokenizer, tokens)
    right = 0
    for vector, noun, wrong in zip(vectors, shown, others, strict=True):
        similarity = tokenizer.embed_text([noun, *wrong]) @ vector
        right += int(similarity.argmax() == 0)
    return right


def fewest_others(nouns: Sequence[str]) -> int:
    """How many nouns to choose from the least fortunate of ``nouns`` has: those that share no word with it."""
    with_word: defaultdict[str, set[str]] = defaultdict(set)
    for noun in nouns:
        for word in noun.split():
            with_word[word].add(noun)
    return len(nouns) - max(len(set().union(*map(with_word.__getitem__, noun.split()))) for noun in nouns)


def _others(rng: np.random.Generator, nouns: Sequence[str], noun: str, count: int) -> list[str]:
    """Other nouns to choose from, none of which names the one shown."""
    pool = [other for other in nouns if not set(other.split()) & set(noun.split())]
    if len(pool) < count:
        raise ValueError(f"a choice of {count + 1} needs more nouns than the {len(pool)} that differ from {noun!r}")
    return [str(pool[i]) for i in rng.choice(len(pool), count, replace=False)]
