"""``pyratok evaluate``: measure a model by a fixed protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from pyratok.cli import benchmarks, common
from pyratok.cli.common import JsonOption, ModelOption, Output, ShownStopwatch

if TYPE_CHECKING:
    from pyratok.eval.codebook_usage import UsageRecord
    from pyratok.eval.language import LanguageRecord
    from pyratok.eval.predictability import PredictabilityRecord
    from pyratok.eval.reconstruction import ClipScore, PrefixScore, ReconstructionRecord

app = typer.Typer(help="Measure a model by a fixed protocol.", no_args_is_help=True)
benchmarks.add_to(app)


@app.command()
def reconstruction(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of clips, or one clip.")],
    size: Annotated[int, typer.Option("--size", min=1, metavar="S", help="Scale the short side to S pixels.")] = 256,
    crop: Annotated[
        int | None,
        typer.Option("--crop", min=1, metavar="C", help="Cut out the centre C x C pixels; default: 256, at most S."),
    ] = None,
    frames: Annotated[int, typer.Option("--frames", min=1, metavar="N", help="Take the first N frames.")] = 33,
    levels: Annotated[
        str, typer.Option("--levels", metavar="LIST", help="Level prefixes to score, such as 1,2,4.")
    ] = "all",
    x265: Annotated[bool, typer.Option("--x265", help="Also encode with x265 at the rate of every prefix.")] = False,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """PSNR and SSIM of every level prefix, clip by clip."""
    from pyratok.eval.reconstruction import EvalProtocol, evaluate_reconstruction, find_clips

    protocol = EvalProtocol(size=size, crop=min(256, size) if crop is None else crop, frames=frames)
    counts = parse_levels(levels)
    clips = find_clips(data)
    out, watch = Output(json_file, model, *clips), ShownStopwatch()
    with watch.step("examining the clips"):
        for clip in clips:
            common.check_clip(clip, size, frames, protocol.crop)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)

    with common.progress_bar(watch.console) as bar:
        task = bar.add_task("clips", total=len(clips))

        def advance(score: ClipScore) -> None:
            bar.advance(task)

        record = evaluate_reconstruction(tokenizer, clips, protocol, levels=counts, with_x265=x265, on_clip=advance)
    out.table(*score_table(record, with_x265=x265), last_is_total=True)
    out.console.print(f"[dim]{record.model}, protocol {protocol.digest}[/]")
    out.finish(record.to_dict())


@app.command("codebook-usage")
def codebook_usage(
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="DIR_OR_MANIFEST", help="Training media; may be given several times."),
    ],
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Count N tokens per level.")] = 1_000_000,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Keep decoded frames here; default: a temporary folder."),
    ] = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Share of the vocabulary in use, perplexity and bit balance per level, on the training mix."""
    from pyratok.data.mixes import mixed_clips
    from pyratok.eval.codebook_usage import UsageProtocol, evaluate_usage
    from pyratok.recipes.nano import DATA

    out, watch = Output(json_file, model, *data), ShownStopwatch()
    protocol = UsageProtocol(tokens=tokens)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    shape = {"frames": protocol.frames, "size": protocol.size, "seed": protocol.seed}
    with TemporaryDirectory() as temporary:
        with watch.step("reading the media"):
            clips = mixed_clips(DATA, data, cache or Path(temporary), **shape, length=protocol.most_clips)
        with common.progress_bar(watch.console, counted=False) as bar:
            task = bar.add_task("tokens", total=1.0)
            record = evaluate_usage(tokenizer, clips, protocol, lambda share: bar.update(task, completed=share))
    out.table(*usage_table(record))
    out.console.print(f"[dim]{record.model}, {record.clips} clips[/]")
    out.finish(record.to_dict())


@app.command("language")
def language(
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="DIR_OR_MANIFEST", help="Captioned sprites and photographs to render clips of."),
    ],
    clips: Annotated[int, typer.Option("--clips", min=1, metavar="N", help="Clips per measure.")] = 200,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """What tokens made without a caption say in words: classification, retrieval, pointing; seen and unseen nouns."""
    from pyratok.data.manifests import gather
    from pyratok.data.synthetic import CaptionedScenes, SceneConfig
    from pyratok.eval.language import LanguageProtocol, evaluate_language

    out, watch = Output(json_file, model, *data), ShownStopwatch()
    protocol = LanguageProtocol(clips=clips)
    media = gather(data)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)

    def scenes(config: SceneConfig) -> CaptionedScenes:
        return CaptionedScenes(media.sprites, media.photos, None, config)

    with common.progress_bar(watch.console) as bar:
        task = bar.add_task("starting", total=5)
        record = evaluate_language(
            tokenizer, scenes, protocol, lambda name: bar.update(task, description=name, advance=1)
        )
    out.table(*language_table(record))
    out.console.print(f"[dim]{record.model}, protocol {protocol.digest}[/]")
    out.finish(record.to_dict())


@app.command("predictability")
def predictability(
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="DIR_OR_MANIFEST", help="Captioned sprites and photographs to render clips of."),
    ],
    lm: Annotated[
        Path | None,
        typer.Option("--lm", metavar="DIR", help="Language model over tokens; default: the one that ships with MODEL."),
    ] = None,
    clips: Annotated[int, typer.Option("--clips", min=1, metavar="N", help="Clips to predict.")] = 200,
    nouns: Annotated[str, typer.Option("--nouns", help="Show seen or unseen nouns.")] = "seen",
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Bits per token that a language model needs after the right, a wrong and no caption, level by level."""
    from pyratok.data.manifests import gather
    from pyratok.data.synthetic import CaptionedScenes, SceneConfig
    from pyratok.eval.predictability import PredictabilityProtocol, evaluate_predictability
    from pyratok.model import companions
    from pyratok.model.token_lm_files import load_token_lm

    out, watch = Output(json_file, model, lm, *data), ShownStopwatch()
    if nouns not in ("seen", "unseen"):
        raise ValueError(f"--nouns is seen or unseen, got {nouns!r}")
    found = lm or companions.shipped_companion(model, companions.LM)
    if found is None:
        raise ValueError(f"{model} comes without a language model over its tokens; train one and give it by --lm")
    media = gather(data)
    source = CaptionedScenes(media.sprites, media.photos, None, SceneConfig(nouns=nouns))
    with watch.step("loading the models"):
        tokenizer = common.load_model(model)
        predictor = load_token_lm(found, tokenizer.model_id)
    protocol = PredictabilityProtocol(clips=clips, counted_clips=max(clips, PredictabilityProtocol().counted_clips))
    with common.progress_bar(watch.console, counted=False) as bar:
        task = bar.add_task("clips", total=1.0)
        record = evaluate_predictability(
            tokenizer, predictor, source, protocol, nouns, lambda share: bar.update(task, completed=share)
        )
    out.table(*predictability_table(record))
    out.console.print(f"[dim]{record.model}, {record.nouns} nouns, protocol {protocol.digest}[/]")
    out.finish(record.to_dict())


def predictability_table(record: PredictabilityRecord) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: bits per token of every level, under each condition and without a model."""
    conditions = list(record.levels[0].predicted)
    rows = []
    for level in record.levels:
        numbers = [*(level.predicted[name] for name in conditions), level.unigram, level.independent]
        rows.append([str(level.level), *(f"{number:.3f}" for number in numbers)])
    return ["level", *conditions, "words counted", "bits counted"], rows


def language_table(record: LanguageRecord) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: each measure, what it is to be held against, and how many questions it was."""
    rows = []
    for score in record.scores:
        beside = ", ".join(f"{name} {value:.1%}" for name, value in score.baselines.items())
        rows.append([f"{score.name} ({score.nouns} nouns)", f"{score.value:.1%}", beside, str(score.count)])
    return ["measure", "tokens", "beside", "asked"], rows


def usage_table(record: UsageRecord) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: use of the vocabulary by every level, and by all of them pooled."""
    columns = ["level", "tokens", "words used", "perplexity", "bit means", "dead bits"]
    named = [*((str(i), level) for i, level in enumerate(record.usage.levels, 1)), ("all", record.usage.pooled)]
    rows = []
    for name, use in named:
        words = "-" if use.unique is None else f"{use.unique:,} ({use.share:.1%})"
        perplexity = "-" if use.perplexity is None else f"{use.perplexity:,.0f}"
        means = f"{min(use.bit_means):.2f} to {max(use.bit_means):.2f}"
        rows.append([name, f"{use.tokens:,}", words, perplexity, means, str(len(use.dead_bits))])
    return columns, rows


def parse_levels(text: str) -> list[int] | None:
    """``all`` to None, ``1,2,4`` to the prefixes, in order and once each.

    Raises: ValueError for anything else.
    """
    if text == "all":
        return None
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1:
        raise ValueError(f"--levels is all, or numbers from 1 such as 1,2,4; got {text!r}")
    return counts


def score_table(record: ReconstructionRecord, *, with_x265: bool) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: per clip, and for the mean last, the PSNR in dB and SSIM of every prefix.

    ``with_x265``: a second line of each row has its PSNR at the same rate, - where it cannot go as low.
    """
    columns = ["clip", "frames"]
    for score in record.mean:
        name = "level 1" if score.levels == 1 else f"levels 1-{score.levels}"
        columns.append(f"{name}\n{score.bits_per_pixel:.4f} bpp\ndB   SSIM")

    def cell(score: PrefixScore) -> str:
        text = f"{score.psnr:.2f}  {score.ssim:.3f}"
        anchor = "-" if score.x265_psnr is None else f"{score.x265_psnr:.2f}"
        return f"{text}\n{anchor}       " if with_x265 else text

    def row(name: str, frames: str, scores: Sequence[PrefixScore]) -> list[str]:
        return [f"{name}\n  x265 at this rate" if with_x265 else name, frames, *map(cell, scores)]

    rows = [row(clip.clip, str(clip.frames), clip.prefixes) for clip in record.clips]
    return columns, [*rows, row("mean", "", record.mean)]
