"""Text to video in a rendered world: is what a prompt asks for there, in its colour, going its way?

Prompts name combinations of thing, colour and way that no training clip has. What a clip shows is found by a detector
without any network (:mod:`pyratok.eval.world_truth`), so that nobody grades their own work. Beside it stand

- shuffled: the same clips held against the prompt of another, which is chance
- tokenizer: the clip of the prompt as it was rendered, through the tokenizer: what the best prior could reach
- agreement: clips that the text space of the tokenizer finds nearer to their own prompt than to that of another
- copies: clips whose words are those of a training clip; nearest: the largest share of bits that a clip has in common
  with one, beside the same of rendered clips that are not trained on
- explained: how much of what is not the place the thing found accounts for, in the mean
- fd: Frechet distance to rendered clips, of generated ones, and of others as the tokenizer gives them
- tc: temporal consistency, how alike neighbouring frames look to the network of that distance
"""

from __future__ import annotations

import functools
import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pyratok.data.scenes import CaptionedClip
from pyratok.data.token_shards import TokenShards
from pyratok.data.video_pixels import to_uint8
from pyratok.data.world import WORLD, Combination, World
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores
from pyratok.eval.benchmarks.networks import digest_of_folder
from pyratok.eval.language import to_video
from pyratok.eval.world_truth import Detector, Sight
from pyratok.losses.perceptual import PerceptualLoss, st_lpips
from pyratok.metrics.consistency import temporal_consistency
from pyratok.metrics.frechet import feature_statistics, frechet_distance
from pyratok.quantization.bits import ids_to_signs
from pyratok.tasks.classification import clip_vectors, embed_texts
from pyratok.tasks.generation.clips import generate_clip
from pyratok.tasks.generation.files import load_prior
from pyratok.tasks.generation.sampling import GUIDANCE, STEPS, TEMPERATURE
from pyratok.types import TokenPyramid

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer

AXES = 32
"""Of the principal axes of rendered clips' features, on which distances are measured: fewer than there are clips."""
CLIPS_AT_ONCE = 256
SHUFFLED, TOKENIZER = ", shuffled", ", tokenizer"
ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
"""How many bits of a byte are set."""


@dataclass(frozen=True, kw_only=True)
class WorldProtocol(BenchmarkProtocol):
    """``prompts`` of held-out combinations (``combinations="trained"``: of those that are trained on), a clip of
    ``frames x size x size`` each, sampled with ``temperature``, ``guidance``, ``steps`` ...; 0 leaves a limit out.
    ``world``, ``prior`` and ``shards``: digests of these folders."""

    benchmark: str = "world"
    prompts: int = 200
    combinations: str = "held-out"
    frames: int = 17
    size: int = 64
    temperature: float = TEMPERATURE
    guidance: float = GUIDANCE
    top_k: int = 0
    top_p: float = 1.0
    steps: int = STEPS
    seed: int = 1
    world: str = ""
    prior: str = ""
    shards: str = ""
    distance: str = (
        "Frechet, ST-LPIPS AlexNet: mean over frames and their change, "
        f"first {AXES} axes of rendered clips, a quarter as many as these at most"
    )
    consistency: str = "100 x mean cosine of neighbouring frames, ST-LPIPS AlexNet means of all stages; mean over clips"

    def __post_init__(self) -> None:
        if self.combinations not in ("held-out", "trained"):
            raise ValueError(f"combinations are 'held-out' or 'trained', got {self.combinations!r}")
        if self.prompts < 2:
            raise ValueError(f"prompts must be at least 2, got {self.prompts}: they are shuffled among one another")

    @property
    def sampling(self) -> dict[str, Any]:
        """For :func:`~pyratok.tasks.generation.generate.generate`."""
        chosen = {"temperature": self.temperature, "guidance": self.guidance, "top_p": self.top_p}
        limits = {"top_k": self.top_k, "steps": self.steps}
        return chosen | {name: value for name, value in limits.items() if value}


@dataclass(frozen=True, kw_only=True)
class PromptItem(Item):
    index: int


@dataclass(frozen=True, kw_only=True)
class WorldBenchmark(Benchmark[PromptItem]):
    """``prior``: the folder of what is measured; ``shards``: of the tokens that it was trained on."""

    protocol: WorldProtocol
    prior: Path | None = None
    shards: Path | None = None

    def load(self) -> Loaded[PromptItem]:
        config, protocol = self._world.config, self.protocol
        held_out = len(config.combinations(held_out=True))
        if protocol.combinations == "held-out" and not held_out:
            raise self.nothing("combination that is held out")
        items = tuple(PromptItem(key=f"{index:04d}", index=index) for index in range(protocol.prompts))
        counts = {"nouns": len(config.nouns), "colours": len(config.colours), "ways": len(config.ways)}
        return Loaded(items=items, counts=counts | {"places": len(config.places), "held-out combinations": held_out})

    def run(self, model: VideoTokenizer) -> Callable[[PromptItem], Answer]:
        if self.prior is None:
            raise ValueError("world measures a prior: --network prior=DIR, the folder of what pyratok train made")
        protocol, prior = self.protocol, load_prior(self.prior, model.model_id)
        detector, extract = Detector(self._world, protocol.size), ClipFeatures()
        nearest = None if self.shards is None else NearestClip(self.shards, model, prior.config.num_levels)

        def answer(item: PromptItem) -> Answer:
            truth, shown = prompted(self._world, protocol, item.index)
            size = {"frames": protocol.frames, "height": protocol.size, "width": protocol.size}
            made = generate_clip(
                model, prior, truth.caption, seed=protocol.seed + item.index, **size, **protocol.sampling
            )
            # What the prior is held against comes through the same tokenizer.
            real = to_video([truth])
            again = model.encode(real).prefix(prior.config.num_levels)
            videos = {"made": model.decode(made).plain(), "again": model.decode(again).plain(), "real": real}
            said: Answer = {"prompt": truth.caption, "truth": shown}
            said |= {name: _told(detector.look(to_uint8(videos[name]))) for name in ("made", "again")}
            looks = {name: extract(video) for name, video in videos.items()}
            said["features"] = {name: look.features.tolist() for name, look in looks.items()}
            said["consistency"] = {name: looks[name].consistency for name in ("made", "again")}
            said["vector"] = clip_vectors(model, made)[0].tolist()
            said["caption"] = embed_texts(model, [truth.caption])[0].tolist()
            if nearest is not None:
                said["shared"] = {"made": nearest(made), "again": nearest(again)}
            return said

        return answer

    def score(self, answers: Sequence[tuple[PromptItem, Answer]]) -> Scores:
        if len(answers) < 2:
            raise ValueError(f"world: {len(answers)} clips could be made; two at least are needed")
        truths = [Combination(*said["truth"]) for _, said in answers]
        others = [*truths[1:], truths[0]]
        made, again = ([said[name] for _, said in answers] for name in ("made", "again"))
        values = dict[str, float]()
        for name, sights, wanted in (("", made, truths), (SHUFFLED, made, others), (TOKENIZER, again, truths)):
            values |= {f"{what}{name}": share for what, share in _shares(sights, wanted).items()}
        vectors, captions = (torch.tensor([said[name] for _, said in answers]) for name in ("vector", "caption"))
        own, other = ((vectors * told).sum(1) for told in (captions, captions.roll(-1, 0)))
        values["agreement"] = float((own > other).float().mean())
        features = {
            name: torch.tensor([said["features"][name] for _, said in answers]) for name in ("made", "again", "real")
        }
        values |= _distances(**features)
        for name, sights in (("", made), (TOKENIZER, again)):
            values[f"explained{name}"] = statistics.fmean(sight["explained"] for sight in sights)
        for name, key in (("", "made"), (TOKENIZER, "again")):
            values[f"tc{name}"] = statistics.fmean(said["consistency"][key] for _, said in answers)
        if shared := [said["shared"] for _, said in answers if "shared" in said]:
            for name, key in (("nearest", "made"), (f"nearest{TOKENIZER}", "again")):
                values[name] = statistics.fmean(pair[key]["share"] for pair in shared)
            values["copies"] = float(sum(pair["made"]["share"] == 1.0 for pair in shared))
        details = {
            "clips": [
                {"prompt": said["prompt"], "made": said["made"], "nearest": said.get("shared")} for _, said in answers
            ]
        }
        return Scores(values=values, details=details)

    @functools.cached_property
    def _world(self) -> World:
        if not (self.data / WORLD).is_file():
            raise self.nothing(WORLD)
        return World(self.data)


def prompted(world: World, protocol: WorldProtocol, index: int) -> tuple[CaptionedClip, Combination]:
    """The rendered clip of a prompt; of another seed than those that are trained on."""
    held_out, seed = protocol.combinations == "held-out", 1_000_003 + protocol.seed
    return world.clip(seed, index, protocol.frames, protocol.size, held_out=held_out)


@dataclass(frozen=True, kw_only=True)
class Look:
    """``features`` float32 ``[D]`` of a clip; ``consistency`` of its frames
    (:func:`~pyratok.metrics.consistency.temporal_consistency`)."""

    features: Tensor
    consistency: float


class ClipFeatures:
    """A declared stand-in for the networks of the literature: how frames look, and how that changes.

    Of the trained AlexNet of ST-LPIPS, per stage the mean over places and frames, and the mean change between frames.
    A frame, where it stands alone, is the means over places of all stages.
    """

    def __init__(self, network: PerceptualLoss | None = None) -> None:
        self.network = network or st_lpips()

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Look:
        """Of a clip ``[1, 3, T, H, W]`` in [-1, 1], two frames or more."""
        frames, parts = [], []
        for stage in self.network.features(video[0].movedim(1, 0).float()):
            looks = stage.mean(dim=(2, 3))
            changes = (stage[1:] - stage[:-1]).abs().mean(dim=(2, 3))
            frames.append(looks)
            parts += [looks.mean(0), changes.mean(0)]
        return Look(features=torch.cat(parts), consistency=temporal_consistency(torch.cat(frames, dim=1)))


class NearestClip:
    """The clip of some shards whose words of the first ``num_levels`` share most bits with those of another. Held in
    memory, a bit each."""

    def __init__(self, folder: Path, model: VideoTokenizer, num_levels: int) -> None:
        shards = TokenShards(folder, model.model_id, shuffle=False)
        packed = []
        for first in range(0, len(shards), CLIPS_AT_ONCE):
            rows = [shards[number] for number in range(first, min(first + CLIPS_AT_ONCE, len(shards)))]
            packed.append(_packed(shards.collate(rows).tokens.prefix(num_levels)))
        self.names = tuple(shards[number].clip for number in range(len(shards)))
        self.bits = np.concatenate(packed)

    def __call__(self, tokens: TokenPyramid) -> dict[str, Any]:
        """``share`` of its bits in common with the clip called ``clip``."""
        (wanted,) = _packed(tokens)
        if wanted.shape != self.bits.shape[1:]:
            raise ValueError("the shards hold clips of another size than those that are made; take those of the prior")
        differing = ONES[self.bits ^ wanted].sum(axis=1, dtype=np.int64)
        best = int(differing.argmin())
        return {"clip": self.names[best], "share": float(1 - differing[best] / (8 * wanted.size))}


def _packed(tokens: TokenPyramid) -> NDArray[np.uint8]:
    """All bits of each clip, uint8 ``[B, n]``; words are whole bytes or padded by equal bits."""
    signs = [ids_to_signs(ids, tokens.num_bits).flatten(1) > 0 for ids in tokens.levels]
    return np.packbits(torch.cat(signs, dim=1).cpu().numpy(), axis=1)


def _told(sight: Sight) -> dict[str, Any]:
    return {"noun": sight.noun, "colour": sight.colour, "way": sight.way, "explained": round(sight.explained, 4)}


def _shares(sights: Sequence[Mapping[str, Any]], truths: Sequence[Combination]) -> dict[str, float]:
    names: tuple[Literal["noun", "colour", "way"], ...] = ("noun", "colour", "way")
    right = [
        {name: sight[name] == getattr(truth, name) for name in names}
        for sight, truth in zip(sights, truths, strict=True)
    ]
    found = {name: statistics.fmean(one[name] for one in right) for name in names}
    return found | {"all": statistics.fmean(all(one.values()) for one in right)}


def _distances(made: Tensor, again: Tensor, real: Tensor) -> dict[str, float]:
    """Half of the rendered clips say what is real; the others, through the tokenizer, how near one can get."""
    known, rest = real[::2], again[1::2]
    centre = known.mean(0)
    axes = torch.linalg.svd(known - centre, full_matrices=False).Vh[: min(AXES, len(known) // 4)]
    if not len(axes):
        return {}
    reference, first, second = (feature_statistics(F.linear(x - centre, axes)) for x in (known, made[1::2], rest))
    return {"fd": frechet_distance(reference, first), f"fd{TOKENIZER}": frechet_distance(reference, second)}


def with_prior(benchmark: WorldBenchmark, networks: Mapping[str, Path]) -> WorldBenchmark:
    """The benchmark of a prior; the digests of all that it depends on go into the protocol."""
    folders = {"world": benchmark.data} | {name: networks[name] for name in ("prior", "shards") if name in networks}
    if absent := [str(path) for path in folders.values() if not path.is_dir()]:
        raise ValueError(f"{absent[0]}: no such folder")
    digests: dict[str, Any] = {name: _digest(path, name) for name, path in folders.items()}
    return replace(
        benchmark,
        protocol=replace(benchmark.protocol, **digests),
        prior=networks.get("prior"),
        shards=networks.get("shards"),
    )


def _digest(folder: Path, what: str) -> str:
    """Of a world its description and pictures, not the clips that were rendered of it."""
    if what != "world":
        return digest_of_folder(folder)
    parts = [digest_of_folder(folder / part) for part in ("sprites", "places") if (folder / part).is_dir()]
    told = (folder / WORLD).read_text() if (folder / WORLD).is_file() else ""
    return hashlib.sha256("\n".join([told, *parts]).encode()).hexdigest()[:16]
