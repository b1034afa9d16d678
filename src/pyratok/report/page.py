"""The demo's report: one HTML file that needs nothing beside it, neither network nor other files."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template

from pyratok.data.video_io import FALLBACK_FPS
from pyratok.report.demo import ERROR_GAIN, DemoResult, Prefix
from pyratok.report.svg import Line, bit_bars, line_chart
from pyratok.report.units import human_bytes, human_seconds

PALETTE = ("#d9902f", "#d2574c", "#a2489f", "#5561d8", "#2089a8", "#2b9a62")
"""One colour per level prefix, told apart on light and on dark ground."""


def render(result: DemoResult) -> str:
    """The whole page as text."""
    template = files("pyratok.report") / "template"

    def part(name: str) -> str:
        return (template / name).read_text(encoding="utf-8")

    whole = result.prefixes[-1]
    fields = {
        "title": f"pyratok: {escape(result.source)}",
        "style": part("style.css"),
        "script": part("player.js"),
        "source": escape(result.source),
        "headline": _headline(result),
        "lead": _lead(result),
        "stage": _media(result, None, "under") + _media(result, None, "over"),
        "controls": _controls(result),
        "figures": _figures(result, whole),
        "levels_text": _levels_text(result),
        "tiles": _tiles(result),
        "plots": "" if result.is_image else _plots(result),
        "imagined": _imagined(result),
        "tokens_text": _tokens_text(result),
        "maps": "".join(_map_tile(result, level) for level in range(len(result.token_maps))),
        "usage_text": _usage_text(result),
        "usage": _usage(result),
        "cost_text": _cost_text(result, whole),
        "sizes": _sizes(result),
        "size_note": _size_note(result, whole),
        "times": _meter(result.seconds, {name: human_seconds(s) for name, s in result.seconds.items()}),
        "time_note": f'<p class="note">Measured once, warm-up included, with {escape(result.host)}.</p>',
        "footer": _footer(result),
        "page": _page_data(result),
    }
    return Template(part("page.html")).substitute(fields)


# ------------------------------------------------------------------------------------------------- the header


def _headline(result: DemoResult) -> str:
    tokens = f"{result.prefixes[-1].tokens:,} tokens"
    if result.is_image:
        return f"This picture became {tokens}, and came back"
    return f"These {result.geometry.frames} frames became {tokens}, and came back"


def _lead(result: DemoResult) -> str:
    g, whole = result.geometry, result.prefixes[-1]
    what = "picture" if result.is_image else "video"
    return (
        f"pyratok wrote a {g.width}&times;{g.height} {what} as whole numbers on {len(result.prefixes)} levels, from "
        f"coarse to fine, stored them in a file of <strong>{human_bytes(whole.file_bytes)}</strong>, and drew the "
        f"{what} again from these numbers alone. Move the line to compare the original with what the tokens remember; "
        "choose how many levels to use."
    )


def _controls(result: DemoResult) -> str:
    buttons = "".join(
        f'<button value="{p.levels}" aria-pressed="false">{_levels(p.levels, short=True)}</button>'
        for p in result.prefixes
    )
    choice = f'<span class="choice" role="group" aria-label="Levels used">{buttons}</span>'
    if result.is_image:
        return choice
    last = result.geometry.frames - 1
    return (
        f'<button class="play">Pause</button>{choice}'
        f'<input class="seek" type="range" min="0" max="{last}" value="0" aria-label="Frame"><output></output>'
    )


def _figures(result: DemoResult, whole: Prefix) -> str:
    size, unit = human_bytes(whole.file_bytes).split()
    figures = [
        ("PSNR", f"{whole.mean_psnr:.1f} <small>dB</small>", "closeness of pixels; 30 is good"),
        ("SSIM", f"{whole.mean_ssim:.3f}", "closeness of structure; 1 is equal"),
        ("Rate", f"{whole.bits_per_pixel:.3f} <small>bits/pixel</small>", "before entropy coding; RGB has 24"),
        ("Token file", f"{size} <small>{unit}</small>", _against_raw(result, whole)),
    ]
    if "encode to tokens" in result.seconds and not result.is_image:
        rate = result.geometry.frames / result.seconds["encode to tokens"]
        figures.append(("Encoding", f"{rate:.0f} <small>frames/s</small>", "on this machine, first run"))
    return "".join(
        f'<div><dt>{name}</dt><dd class="num">{value}</dd><p>{note}</p></div>' for name, value, note in figures
    )


def _against_raw(result: DemoResult, whole: Prefix) -> str:
    return f"{result.raw_bytes / whole.file_bytes:.0f} times smaller than RGB"


# ------------------------------------------------------------------------------------------------ the pictures


def _media(result: DemoResult, data: bytes | None, css: str, levels: int | None = None) -> str:
    """A ``<video>``, or an ``<img>`` for a single frame; without data a script fills it in."""
    g = result.geometry
    kind = "image/png" if result.is_image else "video/mp4"
    source = "" if data is None else f' src="{_data_uri(data, kind)}"'
    mark = "" if levels is None else f' data-levels="{levels}"'
    shared = f'class="media {css}" width="{g.width}" height="{g.height}"{mark}{source}'
    if result.is_image:
        return f'<img {shared} alt="{escape(result.source)}">'
    autoplay = "" if data is None else " autoplay loop"
    return f'<video {shared} muted playsinline preload="auto"{autoplay}></video>'


def _tiles(result: DemoResult) -> str:
    prefixes = (_prefix_tile(result, prefix) for prefix in result.prefixes)
    return "".join([_original_tile(result), *prefixes, _error_tile(result)])


def _original_tile(result: DemoResult) -> str:
    rate = f" at {result.geometry.fps:.4g} fps" if result.geometry.fps else ""
    frames = "" if result.is_image else f"{result.geometry.frames} frames{rate}, "
    caption = f"<h3>Original</h3>{frames}{result.geometry.width}&times;{result.geometry.height}"
    media = _media(result, result.original, "", levels=0)
    return f'<figure class="card">{media}<figcaption>{caption}</figcaption></figure>'


def _prefix_tile(result: DemoResult, prefix: Prefix) -> str:
    caption = (
        f"<h3>{_dot(prefix.levels)}{_levels(prefix.levels)}</h3>"
        f'<span class="num">{prefix.mean_psnr:.2f} dB &middot; SSIM {prefix.mean_ssim:.3f} &middot; '
        f"{prefix.bits_per_pixel:.4f} bits/pixel &middot; {human_bytes(prefix.file_bytes)}</span>"
    )
    media = _media(result, prefix.media, "", levels=prefix.levels)
    return f'<figure class="card">{media}<figcaption>{caption}</figcaption></figure>'


def _error_tile(result: DemoResult) -> str:
    caption = f"<h3>What is missing</h3>Distance from the original with all levels, {ERROR_GAIN} times as bright"
    media = _media(result, result.error, "")
    return f'<figure class="card">{media}<figcaption>{caption}</figcaption></figure>'


def _levels_text(result: DemoResult) -> str:
    first, whole = result.prefixes[0], result.prefixes[-1]
    if len(result.prefixes) == 1:
        return "This model has a single level."
    return (
        f"Each level stores what the levels before it could not say. Level 1 alone reaches {first.mean_psnr:.1f} dB "
        f"with {first.bits_per_pixel:.4f} bits per pixel; all {whole.levels} together {whole.mean_psnr:.1f} dB with "
        f"{whole.bits_per_pixel:.4f}. A reader may stop after any level: the beginning of the file is a whole, "
        "coarser video."
    )


def _plots(result: DemoResult) -> str:
    def chart(title: str, note: str, decimals: int, values: Mapping[int, tuple[float, ...]]) -> str:
        lines = [Line(_levels(n, short=True), _colour(n), v) for n, v in values.items()]
        drawn = line_chart(lines, title=f"{title} per frame", decimals=decimals)
        return f'<div class="card pad"><h3>{title}</h3><p class="note">{note}</p>{drawn}</div>'

    psnr = chart("PSNR, dB", "Peak signal-to-noise ratio over RGB", 1, {p.levels: p.psnr for p in result.prefixes})
    ssim = chart("SSIM", "Gaussian window of 11&times;11", 3, {p.levels: p.ssim for p in result.prefixes})
    return (
        '<section id="frames"><h2>Frame by frame</h2><p>How close every frame is to the original, for each number of '
        "levels; beside each curve its mean. The dashed line follows the video.</p>"
        f'<div class="plots">{psnr}{ssim}</div></section>'
    )


def _imagined(result: DemoResult) -> str:
    """A section of new clips, or how to get it; nothing without a prior."""
    if result.imagined is None:
        return ""
    tiles = "".join(
        f'<figure class="card"><video class="loop" src="{_data_uri(clip.media, "video/mp4")}" muted playsinline '
        f'autoplay loop preload="auto"></video><figcaption>&ldquo;{escape(clip.prompt)}&rdquo;</figcaption></figure>'
        for clip in result.imagined
    )
    told = (
        "A small prior, a transformer over tokens, read these sentences and wrote the tokens of clips that never were; "
        "the model above decoded them. It knows a small world of drawn things and no more. Nothing is picked out, "
        "failures included."
        if tiles
        else "A small prior writes the tokens of new clips from sentences. To read these takes a text encoder: install "
        "<code>pyratok[text]</code> and run this again."
    )
    return (
        f'<section id="imagined"><h2>New clips from words</h2><p>{told}</p>'
        f'<div class="tiles maps">{tiles}</div></section>'
    )


# -------------------------------------------------------------------------------------------------- the tokens


def _tokens_text(result: DemoResult) -> str:
    return (
        f"A token is a word of {result.num_bits} bits for a cell of space and time. Here every cell is painted by its "
        "word, so that words with similar bits have similar colours (three principal components of the bits, for each "
        "level on its own)." + ("" if result.is_image else " The maps play along with the video.")
    )


def _map_tile(result: DemoResult, level: int) -> str:
    steps, rows, columns = result.geometry.grid(level)
    stride_t, stride_h, stride_w = result.geometry.strides[level]
    # Position 0 % shows the first step of the sheet, 100 % the last one.
    hop = 0 if steps == 1 else 100 / (steps - 1)
    padded = result.geometry.padded
    style = (
        f"background-image:url({_data_uri(result.token_maps[level], 'image/png')});background-size:{100 * steps}% 100%;"
        f"--hop:{hop:.6f}%;aspect-ratio:{padded[2]}/{padded[1]}"
    )
    time = "one frame" if stride_t == 1 else f"{stride_t} frames"
    cell = f"{stride_w}&times;{stride_h} pixels" + ("" if result.is_image else f" and {time}")
    caption = (
        f'<h3>{_dot(level + 1)}Level {level + 1}</h3><span class="num">{steps * rows * columns:,} tokens, '
        f"{steps}&times;{rows}&times;{columns}; each covers {cell}</span>"
    )
    picture = f'<div class="map" role="img" aria-label="tokens of level {level + 1}" data-stride="{stride_t}"'
    return f'<figure class="card">{picture} style="{style}"></div><figcaption>{caption}</figcaption></figure>'


def _usage_text(result: DemoResult) -> str:
    return (
        f"Every level chooses from the same {1 << result.num_bits:,} words. Perplexity is the number of words in "
        "effective use; a clip this short cannot reach more than its number of tokens. The bars show how often each "
        "bit is +1: short bars are balanced bits, which carry most; beyond the dashed lines (10 and 90 %) a bit says "
        "little."
    )


def _usage(result: DemoResult) -> str:
    names = ("Level", "Tokens", "Distinct words", "Perplexity", "Dead bits", "Bits")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = []
    for level, usage in enumerate(result.usage, start=1):
        unique = "-" if usage.unique is None else f"{usage.unique:,}"
        perplexity = "-" if usage.perplexity is None else f"{usage.perplexity:,.0f}"
        bars = bit_bars(usage.bit_means, _colour(level))
        cells = (f"{usage.tokens:,}", unique, perplexity, str(len(usage.dead_bits)))
        rows.append(
            f"<tr><td>{_dot(level)} {level}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}"
            f'<td><div style="float:right">{bars}</div></td></tr>'
        )
    return f"<tr>{head}</tr>{''.join(rows)}"


# --------------------------------------------------------------------------------------------- what it costs


def _cost_text(result: DemoResult, whole: Prefix) -> str:
    versus = ""
    if result.is_whole_source:
        ratio = result.source_bytes / whole.file_bytes
        share = f"{ratio:.1f} times smaller than" if ratio >= 1 else f"{1 / ratio:.1f} times as large as"
        versus = f" and {share} the source file"
    return (
        f"The token file is {_against_raw(result, whole)}{versus}. Tokens are made to be modelled and understood; a "
        "modern video codec needs fewer bits for the same pixels."
    )


def _sizes(result: DemoResult) -> str:
    sizes = {"8-bit RGB": result.raw_bytes, "source file": result.source_bytes}
    sizes |= {f"tokens, {_levels(p.levels).lower()}": p.file_bytes for p in reversed(result.prefixes)}
    return _meter(sizes, {name: human_bytes(size) for name, size in sizes.items()}, logarithmic=True)


def _size_note(result: DemoResult, whole: Prefix) -> str:
    g = result.geometry
    header = whole.file_bytes - round(whole.tokens * result.num_bits / 8)
    pixels = f"{'the picture' if result.is_image else f'{g.frames} frames'} of {g.width}&times;{g.height}"
    source = "" if result.is_whole_source else " The source file holds more than these pixels."
    return (
        f'<p class="note">Bars are logarithmic. RGB and tokens are those of {pixels}.{source} '
        f"{human_bytes(header)} of every token file are its header.</p>"
    )


def _meter(values: Mapping[str, float], labels: Mapping[str, str], *, logarithmic: bool = False) -> str:
    """Rows of name, bar and label."""
    largest = max(values.values())
    size = math.log if logarithmic else float
    return "".join(
        f'<span>{escape(name)}</span><i style="width:{100 * size(value) / size(largest):.1f}%"></i>'
        f"<span>{labels[name]}</span>"
        for name, value in values.items()
    )


# ------------------------------------------------------------------------------------------------- the footer


def _footer(result: DemoResult) -> str:
    sample = (
        "<p>Sample clip: &ldquo;person-bicycle-car-detection&rdquo; from intel-iot-devkit/sample-videos, CC BY 4.0, "
        "cut and scaled down. The model in the package never saw it in training.</p>"
        if result.is_sample
        else ""
    )
    return f"<p>Model {escape(str(result.model))}. Made by {escape(result.host)}.</p>{sample}"


def _page_data(result: DemoResult) -> str:
    g = result.geometry
    return json.dumps({"frames": g.frames, "fps": g.fps or FALLBACK_FPS, "levels": len(result.prefixes)})


def _levels(count: int, *, short: bool = False) -> str:
    if short:
        return "1" if count == 1 else f"1-{count}"
    return "Level 1" if count == 1 else f"Levels 1-{count}"


def _colour(level: int) -> str:
    return PALETTE[(level - 1) % len(PALETTE)]


def _dot(level: int) -> str:
    return f'<span class="dot" style="background:{_colour(level)}"></span>'


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
