"""``pyratok generate``, ``continue`` and ``inpaint``: new video by a trained prior."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyratok.cli import common
from pyratok.cli.common import FramesOption, JsonOption, ModelOption, Output, ShownStopwatch
from pyratok.cli.tokens import InputVideo, readable_facts, token_facts

if TYPE_CHECKING:
    from torch import Tensor

    from pyratok.model.base import VideoTokenizer
    from pyratok.tasks.generation.prior import Prior
    from pyratok.types import TokenPyramid

    Draw = Callable[[Callable[[TokenPyramid], None]], TokenPyramid]
    """Samples, and tells parts of the result as soon as they are final."""
    Finish = Callable[[Tensor], Tensor]
    """From the video that tokens decode to, to the one that is written."""

OutputClip = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT.mp4", help="The video to write, or its tokens as .pyra.")
]
PriorOption = Annotated[
    str | None,
    typer.Option("--prior", metavar="NAME|DIR", help="Your own prior's folder, or one that MODEL brings; default: ar."),
]
FootagePriorOption = Annotated[
    str | None,
    typer.Option(
        "--prior",
        metavar="NAME|DIR",
        help="Your own prior's folder, or one that MODEL brings; default: footage, with a caption ar.",
    ),
]
PromptOption = Annotated[str | None, typer.Option("--caption", metavar="TEXT", help="What the video shows.")]
LengthOption = Annotated[
    int | None, typer.Option("--frames", min=1, metavar="N", help="Frames in all; default: as many as was learned.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same video.")]
CountOption = Annotated[
    int, typer.Option("--count", min=1, metavar="N", help="Make N clips, OUT-1.mp4 and so on, of seeds that follow.")
]
GuidanceOption = Annotated[
    float | None, typer.Option("--guidance", metavar="G", help="How much the text counts: 1 is plain; default: 4.")
]
TemperatureOption = Annotated[
    str | None,
    typer.Option("--temperature", metavar="T[,T...]", help="0: the likeliest; one, or one a level; default: 0.8."),
]
TopKOption = Annotated[
    str | None, typer.Option("--top-k", metavar="K[,K...]", help="Draw from the K likeliest values; 0: from all.")
]
TopPOption = Annotated[
    str | None, typer.Option("--top-p", metavar="P[,P...]", help="Draw from the likeliest values that make up P.")
]
StepsOption = Annotated[
    str | None, typer.Option("--steps", metavar="N[,N...]", help="Steps of a scale or masked prior; default: 12.")
]


def generate(
    output: OutputClip,
    chosen: PriorOption = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="What to show; without one, anything that was learned.")
    ] = None,
    guidance: GuidanceOption = None,
    seed: SeedOption = 0,
    frames: LengthOption = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="S|HxW", help="Pixels; default: as many as was learned.")
    ] = None,
    fps: Annotated[float, typer.Option("--fps", metavar="R", help="Frames per second of the video.")] = 25.0,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    steps: StepsOption = None,
    count: CountOption = 1,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Make a new video, of what a prompt says."""
    from pyratok.tasks.generation.clips import generate_clip
    from pyratok.tasks.generation.files import find_prior
    from pyratok.tasks.generation.sampling import advised

    prior_folder = find_prior(chosen, model)
    out, watch = Output(json_file, output, prior_folder, model), ShownStopwatch()
    asked = _how(seed, count, guidance, temperature, top_k, top_p, steps)
    height, width = _size(size)
    _check_prompt(prompt, prior_folder)
    outputs = _outputs(output, count)
    tokenizer, prior = _load(model, prior_folder, watch)
    how = advised(prior.config) | asked
    frames = frames or prior.config.frames
    _check_outputs(outputs, None if frames == 1 else fps, frames)
    shape: dict[str, Any] = {"frames": frames, "height": height, "width": width, "fps": fps}
    tokens = _sample(
        lambda tell: generate_clip(tokenizer, prior, prompt, **shape, on_part=tell, **how), tokenizer, outputs, watch
    )
    _finish(out, watch, tokens, outputs, prior, prior_folder, {"prompt": prompt, "seed": seed})


def continue_(
    video: InputVideo,
    output: OutputClip,
    chosen: FootagePriorOption = None,
    caption: PromptOption = None,
    given: Annotated[
        int | None,
        typer.Option("--given", min=1, metavar="N", help="Go on behind the first N frames; default: half a clip."),
    ] = None,
    frames: LengthOption = None,
    joined: Annotated[
        bool, typer.Option("--join/--no-join", help="Keep the pixels given, and behind them where nothing moves.")
    ] = True,
    mean: Annotated[
        int | None,
        typer.Option("--mean", min=2, metavar="N", help="Show the mean of N clips, blurred where they do not agree."),
    ] = None,
    guidance: GuidanceOption = None,
    seed: SeedOption = 0,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    steps: StepsOption = None,
    count: CountOption = 1,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Go on with a video: its first frames, and what may come then.

    The frames given are scaled and cut to the size that the prior has learned. Of --given N those are used that make up
    whole latent steps: 9 of 12, where a step is 4 frames behind the first. With --no-join all frames are what their
    tokens say, as in a .pyra file.
    """
    from pyratok.data.video_io import FALLBACK_FPS, probe
    from pyratok.tasks.generation.clips import continue_clip, fit_clip, whole_steps
    from pyratok.tasks.generation.sampling import advised
    from pyratok.tasks.generation.seam import join

    prior_folder = _prior_of_videos(chosen, model, caption)
    out, watch = Output(json_file, video, output, prior_folder, model), ShownStopwatch()
    asked = _how(seed, count, guidance, temperature, top_k, top_p, steps)
    _check_prompt(caption, prior_folder)
    outputs, info = _outputs(output, count), probe(video)
    if mean is not None:
        if count != 1 or output.suffix == ".pyra":
            raise ValueError("--mean shows one video of several: give no --count, and no .pyra file to write")
        asked = {"temperature": 1.0} | asked | {"count": mean}
    tokenizer, prior = _load(model, prior_folder, watch)
    how = advised(prior.config) | asked
    frames = frames or prior.config.frames
    _check_outputs(outputs, info.fps or FALLBACK_FPS, frames, video)
    with watch.step("reading the video"):
        clip = fit_clip(video, prior.config, given or (prior.config.frames + 1) // 2)
    begun = whole_steps(clip.shape[2], prior.config)
    tokens = _sample(
        lambda tell: continue_clip(tokenizer, prior, clip, frames=frames, caption=caption, on_part=tell, **how),
        tokenizer,
        outputs,
        watch,
        given=begun,
        finish=partial(join, clip.plain()[:, :, :begun]) if joined else None,
    )
    facts = {"input": video, "caption": caption, "seed": seed, "given": begun}
    _finish(out, watch, tokens, outputs, prior, prior_folder, facts)


def inpaint(
    video: InputVideo,
    mask: Annotated[
        Path, typer.Option("--mask", metavar="MASK", help="White where it is to be made anew: image, video or .npy.")
    ],
    output: OutputClip,
    chosen: FootagePriorOption = None,
    caption: PromptOption = None,
    frames: FramesOption = None,
    joined: Annotated[
        bool, typer.Option("--join/--no-join", help="Keep the pixels that the mask does not touch.")
    ] = True,
    guidance: GuidanceOption = None,
    seed: SeedOption = 0,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    steps: StepsOption = None,
    count: CountOption = 1,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Make a part of a video anew, in space, time or both; the rest stays, but for a soft edge around that part.

    Video and mask are scaled and cut to the size that the prior has learned. Tokens see beyond their cells: a mask
    should be somewhat larger than what it is to hide. With --no-join all of the video is what its tokens say, as in a
    .pyra file.
    """
    from pyratok.data.video_io import probe
    from pyratok.tasks.generation.clips import fit_clip, inpaint_clip, load_region
    from pyratok.tasks.generation.sampling import advised
    from pyratok.tasks.generation.seam import paste

    prior_folder = _prior_of_videos(chosen, model, caption)
    out, watch = Output(json_file, video, mask, output, prior_folder, model), ShownStopwatch()
    asked = _how(seed, count, guidance, temperature, top_k, top_p, steps)
    _check_prompt(caption, prior_folder)
    outputs, info = _outputs(output, count), probe(video)
    tokenizer, prior = _load(model, prior_folder, watch)
    how = advised(prior.config) | asked
    _check_outputs(outputs, info.fps, frames or info.frames, video, mask)
    with watch.step("reading the video"):
        clip = fit_clip(video, prior.config, frames)
        region = load_region(mask, video, prior.config, clip.shape[2])
    tokens = _sample(
        lambda tell: inpaint_clip(tokenizer, prior, clip, region, caption=caption, on_part=tell, **how),
        tokenizer,
        outputs,
        watch,
        finish=partial(paste, clip.plain(), region) if joined else None,
    )
    share = float(region.float().mean())
    facts = {"input": video, "mask": mask, "caption": caption, "seed": seed, "made_anew": share}
    _finish(out, watch, tokens, outputs, prior, prior_folder, facts)


def _prior_of_videos(chosen: str | None, model: str | None, caption: str | None) -> Path:
    """The prior for a given video: by default that of footage, or one that reads captions where there is one."""
    from pyratok.tasks.generation.files import FOOTAGE, SHIPPED, find_prior

    return find_prior(chosen, model, default=FOOTAGE if caption is None else SHIPPED[0])


def _how(
    seed: int,
    count: int,
    guidance: float | None,
    temperature: str | None,
    top_k: str | None,
    top_p: str | None,
    steps: str | None,
) -> dict[str, Any]:
    """Those of the options that were given, as the library takes them."""
    chosen = {
        "guidance": guidance,
        "temperature": _per_level("--temperature", temperature, float),
        "top_k": _per_level("--top-k", top_k, int),
        "top_p": _per_level("--top-p", top_p, float),
        "steps": _per_level("--steps", steps, int),
    }
    return {name: value for name, value in chosen.items() if value is not None} | {"seed": seed, "count": count}


def _per_level(option: str, text: str | None, kind: type[int] | type[float]) -> int | float | list[int | float] | None:
    """One number, or several with commas between. Raises ValueError for anything else."""
    if text is None:
        return None
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{option} is {wanted}, or one for each level with commas between, got {text!r}") from None
    return values if len(values) > 1 else values[0]


def _size(text: str | None) -> tuple[int, int] | tuple[None, None]:
    """Height and width of ``64`` or ``48x64``. Raises ValueError for anything else."""
    if text is None:
        return None, None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if found is None or not int(found[1]):
        raise ValueError(f"--size is a number of pixels, or height x width as in 48x64, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _check_prompt(prompt: str | None, prior_folder: Path) -> None:
    """Refuse an empty prompt, and say which words of it are new to the prior."""
    from pyratok.tasks.generation.prompts import check_prompt, unseen_words

    if prompt is None:
        return
    if unseen := unseen_words(prior_folder, check_prompt(prompt)):
        warnings.warn(f"no caption that this prior was trained on has {', '.join(unseen)}", stacklevel=2)


def _outputs(output: Path, count: int) -> list[Path]:
    """A name for each clip."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(1, count + 1)]


def _check_outputs(outputs: Sequence[Path], fps: float | None, frames: int | None, *inputs: Path) -> None:
    for path in outputs:
        if path.suffix == ".pyra":
            common.check_output(path, *inputs)
        else:
            common.check_video_output(path, fps, frames, *inputs)


def _load(model: str | None, prior_folder: Path, watch: ShownStopwatch) -> tuple[VideoTokenizer, Prior]:
    """Both models; ValueError for a prior of another tokenizer."""
    from pyratok.tasks.generation.files import load_prior

    with watch.step("loading the models"):
        tokenizer = common.load_model(model)
        return tokenizer, load_prior(prior_folder, tokenizer.model_id)


def _sample(
    draw: Draw,
    tokenizer: VideoTokenizer,
    outputs: Sequence[Path],
    watch: ShownStopwatch,
    *,
    given: int = 0,
    finish: Finish | None = None,
) -> TokenPyramid:
    """Sample and write, the mean of all clips where there is one output; when interrupted, what goes beyond the
    ``given`` frames and is final."""
    from pyratok.types import TokenPyramid

    parts: list[TokenPyramid] = []
    try:
        with watch.step("sampling"):
            tokens = draw(parts.append)
    except KeyboardInterrupt:
        if parts and (kept := TokenPyramid.concat(parts)).geometry.frames > given:
            _write(kept, tokenizer, outputs, finish)
            whose = outputs[0] if len(outputs) == 1 else f"{outputs[0]} to {outputs[-1].name}"
            print(f"pyratok: {whose}: the first {kept.geometry.frames} frames, which were final", file=sys.stderr)
        raise
    with watch.step("decoding and writing"):
        _write(tokens, tokenizer, outputs, finish)
    return tokens


def _write(
    tokens: TokenPyramid, tokenizer: VideoTokenizer, outputs: Sequence[Path], finish: Finish | None = None
) -> None:
    from pyratok.codec.container import save_tokens
    from pyratok.data.video_io import save_video
    from pyratok.types import Video

    for index, path in enumerate(outputs):
        clip = tokens if len(outputs) == 1 else tokens.select(index)
        if path.suffix == ".pyra":
            save_tokens(clip, path)
        else:
            decoded = tokenizer.decode(clip)
            video = decoded.plain().mean(0, keepdim=True)
            save_video(Video(finish(video) if finish else video, decoded.fps), path)


def _finish(
    out: Output,
    watch: ShownStopwatch,
    tokens: TokenPyramid,
    outputs: Sequence[Path],
    prior: Prior,
    prior_folder: Path,
    facts: dict[str, Any],
) -> None:
    about = token_facts(tokens)
    out.facts({"wrote": ", ".join(map(str, outputs))} | readable_facts(about))
    made = {"outputs": list(outputs), "prior": {"folder": prior_folder, "kind": prior.config.kind}}
    out.finish(facts | made | about | {"seconds": watch.seconds})
