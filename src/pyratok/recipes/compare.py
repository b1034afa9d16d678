"""Train and measure the variants of an ablation, one after another; what is done is kept, what is not goes on.

```
OUT/frames/                      decoded frames, shared by all
OUT/VARIANT/seed-N/result.json   when measured; until then checkpoints/, log.jsonl
OUT/VARIANT/seed-N/reading/      while its text head learns from its finished tokens
OUT/VARIANT/seed-N/model/        the trained tokenizer
```

All variants start from one VAE, with everything else fresh, and see the same clips in the same order for a seed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import torch
from torch import nn

from pyratok.config import LaPQConfig, PyraTokConfig, to_dict
from pyratok.data.manifests import Media, gather
from pyratok.data.mixes import captioned_clips
from pyratok.data.synthetic import CaptionedScenes, SceneConfig
from pyratok.data.video_io import VideoError
from pyratok.eval.ablation import AblationProtocol, AblationRecord, VariantRun, measure_variant, tabulate
from pyratok.eval.language import fewest_others
from pyratok.eval.reconstruction import EvalProtocol, find_clips, load_clip
from pyratok.files import alone_in
from pyratok.losses.perceptual import PerceptualLoss, st_lpips
from pyratok.model.base import VideoTokenizer
from pyratok.model.baseline import BaselineTokenizer
from pyratok.model.pretrained import from_pretrained
from pyratok.model.pyratok import PyraTok
from pyratok.nn.lora import merge
from pyratok.quantization.vq import VectorQuantizer
from pyratok.recipes.ablations import Ablation, VariantPlan, plan
from pyratok.text.base import TextEncoder
from pyratok.text.minilm import MiniLM
from pyratok.train.assembly import build_objective
from pyratok.train.baseline import build_baseline
from pyratok.train.checkpoint import latest_checkpoint, write_json
from pyratok.train.objectives import Objective
from pyratok.train.reading import HeadObjective, HeadParts
from pyratok.train.recipe import Recipe
from pyratok.train.stored import StoredClips, store_clips
from pyratok.train.trainer import TrainConfig, train
from pyratok.vae.hub import read_json

HELD_OUT_SHARE = 0.1
RESULT = "result.json"
RunT = TypeVar("RunT")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every variant meets: media to learn from, clips held out, the protocol, and models that stay as they are.

    ``start``: a model folder of whose weights the VAE alone is taken; ``start_digest`` says which VAE that is.
    ``exclude``: stems of files that no variant learns from.
    """

    roots: tuple[str | Path, ...]
    out: Path
    start: Path
    start_digest: str
    clips: tuple[Path, ...]
    held_out: str
    exclude: tuple[str, ...]
    media: Media
    protocol: AblationProtocol
    text_encoder: TextEncoder
    perceptual: PerceptualLoss

    def scenes(self, config: SceneConfig) -> CaptionedScenes:
        return CaptionedScenes(self.media.sprites, self.media.photos, None, config)


def run_ablation(
    ablation: Ablation,
    base: Recipe,
    roots: Sequence[str | Path],
    out: Path,
    *,
    init: Path | None = None,
    val: Path | None = None,
    reading: Recipe | None = None,
    seeds: int = 2,
    only: Sequence[str] = (),
    protocol: AblationProtocol | None = None,
    text_encoder: TextEncoder | None = None,
    perceptual: PerceptualLoss | None = None,
    on_variant: Callable[[str, int], None] = lambda name, seed: None,
    on_step: Callable[[str], None] = lambda name: None,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
    on_record: Callable[[AblationRecord], None] = lambda record: None,
) -> AblationRecord:
    """Every variant (or ``only`` some) with seeds 0, 1, ..., the first seed of all before the second of any.

    ``init``: the model whose VAE all start from, by default the one in the package. ``val``: a folder of clips to score
    reconstruction on; without it a tenth of the videos under ``roots`` is held out, by name. ``reading``: how text
    heads learn from finished tokens, before these are asked what they say. ``on_record`` gets the table whenever a
    result is added. A run that is asked to stop (SIGTERM, SIGINT) saves where it is and ends; called
    again, this goes on from there.

    Raises: ValueError for data that will not do, for results in ``out`` that were made with other settings, and where
    another process works in ``out``.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    names = ablation.chosen(only)
    plans = {name: plan(base, variant, reading) for name, variant in ablation.variants.items()}
    with TemporaryDirectory() as folder:
        bench = prepare(
            base, roots, out, Path(folder), init=init, val=val, protocol=protocol or AblationProtocol(),
            text_encoder=text_encoder, perceptual=perceptual,
        )  # fmt: skip
        # Results of another setting are met before hours of work are put beside them.
        kept = [(name, seed) for seed in range(seeds) for name in plans]
        found = {(name, seed): kept_run(bench, name, seed, plans[name]) for name, seed in kept}
        done = {key: run for key, run in found.items() if run is not None}

        def record() -> AblationRecord:
            return AblationRecord(
                name=ablation.name,
                title=ablation.title,
                reference=ablation.reference,
                protocol=bench.protocol,
                clips=tuple(clip.name for clip in bench.clips),
                held_out=bench.held_out,
                seeds=seeds,
                rows=tabulate(ablation.variants, ablation.reference, list(done.values())),
            )

        out.mkdir(exist_ok=True)
        with alone_in(out):
            on_record(record())
            for seed in range(seeds):
                for name in names:
                    if (name, seed) in done:
                        continue
                    on_variant(name, seed)
                    run = train_variant(bench, name, seed, plans[name], on_step=on_step, on_log=on_log)
                    if run is None:
                        return record()
                    done[name, seed] = run
                    on_record(record())
            return record()


def prepare(
    base: Recipe,
    roots: Sequence[str | Path],
    out: Path,
    folder: Path,
    *,
    init: Path | None,
    val: Path | None,
    protocol: AblationProtocol,
    text_encoder: TextEncoder | None,
    perceptual: PerceptualLoss | None,
) -> Bench:
    """Check everything that can be checked before the first step; ``folder`` takes the start.

    Raises: ValueError where clips, nouns or the VAE will not do, ImportError where weights of a measure are missing.
    """
    everything = gather(roots, exclude=base.data.exclude)
    if val is not None:
        clips, held_out = find_clips(val), f"all of {val.absolute().name}"
        for clip in clips:
            load_clip(clip, protocol.reconstruction)
    else:
        clips = hold_out([entry.path for entry in everything.videos], protocol.reconstruction)
        held_out = f"{len(clips)} of {len(everything.videos)} videos of the data, by their names; none is trained on"
    exclude = tuple(dict.fromkeys([*base.data.exclude, *(clip.stem for clip in clips)]))
    if val is None and all(entry.path.stem in exclude for entry in everything.videos):
        raise ValueError("all videos bear the name of one that is held out; give clips to score with --val DIR")
    start, digest = save_start(base, init, folder)
    bench = Bench(
        roots=tuple(roots),
        out=out,
        start=start,
        start_digest=digest,
        clips=tuple(clips),
        held_out=held_out,
        exclude=exclude,
        media=gather(roots, exclude=exclude),
        protocol=protocol,
        text_encoder=text_encoder or MiniLM(),
        perceptual=perceptual or st_lpips(),
    )
    for nouns in ("seen", "unseen"):
        found, ways = fewest_others(bench.scenes(SceneConfig(nouns=nouns)).nouns) + 1, protocol.language.ways
        if found < ways:
            told = f"a choice of {ways} nouns needs more than {found} {nouns} ones without a word in common"
            raise ValueError(f"{told}; add captioned sprites")
    return bench


def hold_out(videos: Sequence[Path], protocol: EvalProtocol) -> list[Path]:
    """A tenth of the videos, one at least: those whose names' SHA-1 comes first, whatever else is in the data.

    Those that cannot be read are passed over: they are not trained on either. Raises: ValueError where none would be
    left to learn from, or none can be read.
    """
    if len(videos) < 2:
        raise ValueError(f"{len(videos)} videos are too few to hold some out; give clips to score with --val DIR")

    def is_readable(video: Path) -> bool:
        try:
            load_clip(video, protocol)
        except VideoError:
            return False
        return True

    ordered = sorted(videos, key=lambda video: hashlib.sha1(os.fsencode(video.name)).hexdigest())
    held = list(islice(filter(is_readable, ordered), max(1, round(len(videos) * HELD_OUT_SHARE))))
    if not held:
        raise ValueError(f"none of {len(videos)} videos can be read; give clips to score with --val DIR")
    return held


def save_start(base: Recipe, init: Path | None, folder: Path) -> tuple[Path, str]:
    """A model folder whose VAE is that of ``init`` and whose quantizer fits no variant, so that none begins ahead.

    Raises: ValueError where its VAE is not the one that variants train.
    """
    source = from_pretrained(init)
    if not isinstance(source, PyraTok) or source.config.vae != base.model.vae:
        raise ValueError(f"{init or source.name}: its VAE is not the one that the variants train")
    vae = source.config.vae
    bare = LaPQConfig(taps=(len(vae.tap_strides) - 1,), strides=(vae.latent_stride,), width=8, num_bits=1, num_heads=1)
    model = PyraTok(PyraTokConfig(name="start", vae=vae, lapq=bare))
    model.vae.load_state_dict(source.vae.state_dict())
    model.save_pretrained(folder / "start")
    return folder / "start", source.digest(without=("name", "lapq", "text_head"))[:16]


def train_variant(
    bench: Bench,
    name: str,
    seed: int,
    plan: VariantPlan,
    *,
    on_step: Callable[[str], None] = lambda name: None,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> VariantRun | None:
    """Train a variant from where it stands and measure it; None where it was asked to stop before its last step."""
    recipe, folder = seeded(bench, plan.recipe, seed), folder_of(bench, name, seed)
    config, origin = recipe.train, origin_of(bench, plan, seed)
    torch.manual_seed(seed)
    objective = build(replace(plan, recipe=recipe), bench.start, bench.text_encoder)
    dataset = captioned_clips(
        recipe.data,
        bench.roots,
        bench.out / "frames",
        frames=config.frames,
        size=config.size,
        length=config.steps * config.batch_size,
        seed=seed,
        stride=recipe.model.lapq.strides[-1],
    )
    averaged = train(objective, dataset, config, folder, resume=True, origin=origin, on_log=on_log)
    if not is_finished(folder, config):
        return None
    tokenizer = deployed(averaged, bench.text_encoder)
    if plan.reading is not None:
        on_step("reading")
        taught = read(bench, seeded(bench, plan.reading, seed), tokenizer, folder / "reading", origin)
        if taught is None:
            return None
        tokenizer = taught
    rate, values = measure_variant(tokenizer, bench.clips, bench.scenes, bench.protocol, bench.perceptual, on_step)
    run = VariantRun(
        variant=name,
        seed=seed,
        steps=config.steps,
        parameters=num_parameters(tokenizer),
        bits_per_pixel=rate,
        values=values,
    )
    assert isinstance(tokenizer, PyraTok | BaselineTokenizer)
    tokenizer.save_pretrained(folder / "model")
    write_json(folder / RESULT, {"origin": origin, "run": asdict(run)})
    for done in ("checkpoints", "reading"):
        shutil.rmtree(folder / done, ignore_errors=True)
    return run


def read(
    bench: Bench, recipe: Recipe, tokenizer: VideoTokenizer, folder: Path, origin: dict[str, Any]
) -> VideoTokenizer | None:
    """Let the text head of a tokenizer learn from its tokens as they are; None where it was asked to stop."""
    config, seed = recipe.train, recipe.train.seed
    clips = captioned_clips(
        recipe.data,
        bench.roots,
        bench.out / "frames",
        frames=config.frames,
        size=config.size,
        length=recipe.stored,
        seed=seed,
        stride=tokenizer.strides[-1],
    )
    shards = store_clips(
        tokenizer, clips, folder / "tokens", to_dict(recipe.data), workers=config.workers, bf16=config.bf16
    )
    dataset = StoredClips(shards, clips.nouns, length=config.steps * config.batch_size, seed=seed)
    torch.manual_seed(seed)
    objective = HeadObjective(HeadParts(tokenizer), config.losses, recipe.language, bench.text_encoder)
    objective.texts.learn_names(clips.nouns if recipe.language.vocabulary else ())
    averaged = train(objective, dataset, config, folder, resume=True, origin=origin)
    return deployed(averaged, bench.text_encoder) if is_finished(folder, config) else None


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Did the run in ``folder`` come to its last step, or was it asked to stop before?"""
    newest = latest_checkpoint(folder / "checkpoints")
    return newest is not None and newest.name.endswith(f"{config.steps:08d}")


def build(plan: VariantPlan, start: Path, text_encoder: TextEncoder) -> Objective:
    """The objective of a variant, with the VAE of ``start`` and everything else fresh from torch's generator."""
    if plan.baseline is not None:
        return build_baseline(plan.baseline, plan.recipe, start, text_encoder)
    return build_objective(plan.recipe, start, text_encoder)


def deployed(averaged: nn.Module, text_encoder: TextEncoder) -> VideoTokenizer:
    """The tokenizer of what was trained, adapters merged, in evaluation mode."""
    tokenizer = cast(VideoTokenizer, merge(copy.deepcopy(cast(nn.Module, averaged.tokenizer))))
    tokenizer.text_encoder = text_encoder
    tokenizer.eval().requires_grad_(False)
    return tokenizer


def num_parameters(tokenizer: VideoTokenizer) -> int:
    """Learned numbers; codebooks that follow their tokens are learned too, though torch calls them buffers."""
    followers = (module.codebook for module in tokenizer.modules() if isinstance(module, VectorQuantizer))
    return sum(values.numel() for values in chain(tokenizer.parameters(), followers))


def kept_run(bench: Bench, name: str, seed: int, plan: VariantPlan) -> VariantRun | None:
    """The result of a variant, if it is there; raises as :func:`load_result`."""
    return load_result(folder_of(bench, name, seed) / RESULT, origin_of(bench, plan, seed), VariantRun)


def load_result(path: Path, origin: Mapping[str, Any], kind: type[RunT]) -> RunT | None:
    """What was measured before, if it was.

    Raises: ValueError where it was made with other settings (naming the first that differs), or cannot be read.
    """
    if not path.exists():
        return None
    found = read_json(path)
    try:
        before, run = found["origin"], kind(**found["run"])
    except (LookupError, TypeError):
        raise ValueError(f"{path} is not a result of this command; delete it to have it made again") from None
    difference = next(differences(before, json.loads(json.dumps(origin))), None)
    if difference is not None:
        field, was, wanted = difference
        raise ValueError(
            f"{path} was made with {field} = {was!r}, not {wanted!r}; give the same again, or another --out"
        )
    return run


def differences(before: Any, now: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted fields with different values; those that only one side has come from another version."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in (key for key in before if key in now):
            yield from differences(before[key], now[key], f"{field}.{key}".lstrip("."))
    elif before != now:
        yield field, before, now


def seeded(bench: Bench, recipe: Recipe, seed: int) -> Recipe:
    """The recipe as it is run: with its seed, and nothing that is held out."""
    data, train = replace(recipe.data, exclude=bench.exclude), replace(recipe.train, seed=seed)
    return replace(recipe, data=data, train=train)


def origin_of(bench: Bench, plan: VariantPlan, seed: int) -> dict[str, Any]:
    """What a result follows from, JSON-ready; of the media, how many there are."""
    return {
        "recipe": settings_of(seeded(bench, plan.recipe, seed)),
        "quantizer": None if plan.baseline is None else to_dict(plan.baseline),
        "reading": None if plan.reading is None else settings_of(seeded(bench, plan.reading, seed)),
        "vae": bench.start_digest,
        "clips": [clip.name for clip in bench.clips],
        "media": {kind: len(entries) for kind, entries in vars(bench.media).items()},
        "protocol": to_dict(bench.protocol),
    }


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Of a recipe, what its result follows from, JSON-ready."""
    return to_dict(recipe) | {"train": recipe.train.origin() | {"steps": recipe.train.steps}}


def folder_of(bench: Bench, name: str, seed: int) -> Path:
    return bench.out / name / f"seed-{seed}"
