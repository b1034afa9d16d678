"""What docs/performance.md shows of each record: tables in markdown, plots in SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plots import bars, curves
from records import Record

WAYS = ("encode", "decode")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: the name of its record and of its plot, what stands above the figures, and the figures."""

    name: str
    title: str
    text: str
    tables: Callable[[Record], Iterable[str]]
    plot: Callable[[Record], str] | None = None


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def size(clip: Sequence[int]) -> str:
    return "x".join(map(str, clip))


def each(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Way, name and result, of every result both ways."""
    for name, result in found.items():
        for way in WAYS:
            yield way, name, result


def wan_tables(record: Record) -> Iterable[str]:
    rows = [
        [
            f"{way}, {dtype}",
            f"{found['seconds'][way]:.2f} s",
            f"{found['seconds'][f'diffusers_{way}']:.2f} s",
            f"{found['times_faster'][way]:.2f}x",
            f"{found['roofline_share'][way]:.0%}",
            f"{found['roofline_share'][f'diffusers_{way}']:.0%}",
        ]
        for way, dtype, found in each(record["results"])
    ]
    yield f"Clip of {size(record['clip'])}. The last two columns: share of the best convolution rate, ours and theirs."
    yield table(["", "pyratok", "diffusers", "faster", "share", "theirs"], rows)
    rates = ", ".join(f"{r['best_conv_gflop_per_second']:.0f} ({dtype})" for dtype, r in record["results"].items())
    apart = ", ".join(f"{r['relative_difference']:.1g} ({dtype})" for dtype, r in record["results"].items())
    yield f"Best convolution rate in GFLOP/s: {rates}. Relative difference of the results: {apart}."
    yield f"Peak memory with a clip of {size(record['memory_clip'])}:"
    rows = [
        [
            f"{way}, {dtype}",
            f"{found[way]['pyratok_mib']:.0f} MiB",
            f"{found[way]['pyratok_steps_mib']:.0f} MiB",
            f"{found[way]['diffusers_mib']:.0f} MiB",
            f"{found[way]['share_of_diffusers']:.2f}",
            f"{found[way]['share_of_diffusers_by_steps']:.2f}",
        ]
        for way, dtype, found in each(record["memory"])
    ]
    yield table(["", "pyratok, whole", "step by step", "diffusers", "whole / theirs", "steps / theirs"], rows)


def wan_plot(record: Record) -> str:
    rows = [
        (f"{way}, {dtype}", {"pyratok": found["seconds"][way], "diffusers": found["seconds"][f"diffusers_{way}"]})
        for way, dtype, found in each(record["results"])
    ]
    return bars(rows, title=f"Wan 2.1 VAE, {size(record['clip'])}: seconds")


def nano_tables(record: Record) -> Iterable[str]:
    first = next(iter(record["results"].values()))["frames_per_second"]
    pieces = [name.removeprefix("encode_stream_") for name in first if name.startswith("encode_stream_")]
    rows = [
        [
            f"{way}, {dtype}",
            *(f"{found['frames_per_second'][name]:.1f}" for name in (way, *(f"{way}_stream_{n}" for n in pieces))),
            f"{found['vae_times_diffusers'][way]:.2f}x",
            f"{record['peak_mib'][dtype][way]:.0f} MiB",
        ]
        for way, dtype, found in each(record["results"])
    ]
    yield f"Frames per second, clip of {size(record['clip'])}; whole, and streamed in pieces of so many latent steps."
    yield table(["", "whole", *pieces, "VAE against diffusers'", "peak memory, whole"], rows)
    yield "Live stream, one frame at a time: milliseconds from the last frame that a latent step needs to its result."
    rows = [
        [f"{way}, {dtype}", f"{found[way]['p50_ms']:.1f}", f"{found[way]['p95_ms']:.1f}", found[way]["steps"]]
        for way, dtype, found in each(record["latency"])
    ]
    yield table(["", "median", "95th percentile", "latent steps"], rows)


def nano_plot(record: Record) -> str:
    rows = []
    for way, dtype, found in each(record["results"]):
        rates = {name.partition("_stream_"): rate for name, rate in found["frames_per_second"].items()}
        named = {f"steps of {n}" if n else "whole": rate for (of, _, n), rate in rates.items() if of == way}
        rows.append((f"{way}, {dtype}", named))
    return bars(rows, title=f"pyratok-nano, {size(record['clip'])}: frames per second")


def lfq_tables(record: Record) -> Iterable[str]:
    found, ours = record["results"], {"per_bit": "per bit", "groups_of_8": "groups of 8 bits"}
    rows = [
        [
            label,
            f"{1000 * found['seconds'][name]:.1f} ms",
            f"{found['times_faster'].get(name, 1):,.0f}x",
            f"{found['process_peak_mib'][name]:,.0f} MiB",
            f"{found['times_less_process_memory'].get(name, 1):.1f}x",
            f"{found['added_mib'][name]:,.0f} MiB",
        ]
        for name, label in {**ours, "library": "vector-quantize-pytorch"}.items()
    ]
    words = f"2^{record['bits']} words, {record['tokens']:,} tokens"
    yield f"{words}, forward and backward. The last column is what the pass adds to the process before it."
    yield table(["batch entropy", "time", "faster", "peak memory", "less", "added"], rows)
    entropy = found["sample_entropy"]
    yield f"Per-sample entropy, nats: {entropy['pyratok']:.4f}, the library's {entropy['library']:.4f}."
    yield "Entropies in nats where the table over all words can be held (float64), to which ours are sums over bits:"
    rows = [
        [
            f"2^{bits} words, {kind.replace('_', ' ')}",
            *(f"{values['sample_entropy'][name]:.4f}" for name in ("joint", "pyratok")),
            *(f"{values['batch_entropy'][name]:.3f}" for name in ("joint", "per_bit", "groups_of_8")),
        ]
        for bits, kinds in record["against_joint"].items()
        for kind, values in kinds.items()
    ]
    yield table(["", "per sample, table", "ours", "batch, table", "per bit", "groups of 8"], rows)


def large_tables(record: Record) -> Iterable[str]:
    rows = [
        [
            f"{name}, {way}",
            f"{found[way]['seconds']:.0f} s",
            f"{found[way]['seconds_per_megapixel_frame']:.3f}",
            f"{found[way]['peak_mib'] / 1024:.2f} GiB",
            found[way]["plan"],
        ]
        for way, name, found in each(record["results"])
    ]
    yield f"{record['frames']} frames through pyratok-nano, {record['dtype']}, within {record['memory']}."
    yield table(["", "time", "seconds per megapixel-frame", "peak memory", "plan"], rows)
    ratios = ", ".join(f"{way} {record['per_pixel_ratio'][way]:.2f}" for way in WAYS)
    yield f"Cost of a pixel of the largest against the smallest: {ratios}."
    yield f"The planner, {size(record['planner_clip'])}:"
    rows = [
        [
            f"{row['budget_gib']:g} GiB, {row['way']}",
            *(
                ["refused", "", "", ""]
                if row["refused"]
                else [
                    f"{row['predicted_mib'] / 1024:.2f} GiB",
                    f"{row['peak_mib'] / 1024:.2f} GiB",
                    f"{row['peak_mib'] / 1024 / row['budget_gib']:.0%}",
                    row["plan"],
                ]
            ),
        ]
        for row in record["planner"]
    ]
    yield table(["budget", "predicted", "measured", "of the budget", "plan"], rows)


def large_plot(record: Record) -> str:
    rows = [
        (
            f"{row['budget_gib']:g} GiB, {row['way']}",
            {
                "budget": row["budget_gib"],
                "predicted peak": row["predicted_mib"] / 1024,
                "measured peak": row["peak_mib"] / 1024,
            },
        )
        for row in record["planner"]
        if not row["refused"]
    ]
    return bars(rows, title=f"Memory for a clip of {size(record['planner_clip'])}: GiB")


def long_tables(record: Record) -> Iterable[str]:
    rows = [
        [
            way,
            f"{found['times_real_time']:.2f}x",
            f"{found['minutes'][0]['resident_mib']:.0f} MiB",
            f"{found['minutes'][-1]['resident_mib']:.0f} MiB",
            f"{found['growth_percent']:+.1f} %",
            f"{found['peak_mib']:.0f} MiB",
        ]
        for way, found in record["results"].items()
    ]
    yield (
        f"{record['minutes']:g} minutes of {size(record['size'])} at {record['fps']:g} frames per second in blocks of "
        f"{record['block']} frames, {record['dtype']}; tokens go to a `.pyra` file and come from it."
    )
    yield table(["", "real time", "memory, first minute", "last minute", "growth", "peak"], rows)


def long_plot(record: Record) -> str:
    lines = {
        way: [(row["minute"], row["resident_mib"]) for row in found["minutes"]]
        for way, found in record["results"].items()
    }
    return curves(lines, title="Memory held while streaming: MiB", x_label="minute of the video", from_zero=True)


def seams_tables(record: Record) -> Iterable[str]:
    found = record["results"]
    rows = [
        [
            f"{row['halo']} pixels" + (f", blended over {2 * row['feather']}" if row["feather"] else ""),
            f"{row['seam_ratio']:.3f}",
            f"{row['relative_difference']:.1g}",
            *(f"{percent:.2f} %" for percent in row["differing_bits_percent"]),
        ]
        for row in found
    ]
    levels = [f"bits of level {number}" for number, _ in enumerate(found[0]["differing_bits_percent"], start=1)]
    yield f"Clip of {size(record['clip'])}, {record['tile']}x{record['tile']} pixels a tile, random weights, float32."
    yield table(["halo", "seam ratio", "relative difference of pixels", *levels], rows)
    yield "The last frame, whole, in tiles without a halo, and in tiles with the widest:"
    yield "![Whole, and in tiles](images/perf-seams.png)"


def resolutions_tables(record: Record) -> Iterable[str]:
    rows = [
        [
            f"{height}p",
            f"{row['percent']:.1f} %",
            f"{row['paper_percent']:.1f} %",
            f"{row['perplexity']:,.0f}",
            *(f"{level['percent']:.1f} %" for level in row["levels"]),
            f"{row['enlarged_percent']:.0f} %",
        ]
        for height, row in record["results"].items()
    ]
    tokens = next(iter(record["results"].values()))["tokens"]
    yield (
        f"Share of the words in use by {record['model']} in {tokens:,} tokens of all levels, from {record['crops']} "
        f"crops of {size(record['crop'])} at every resolution; files: {record['files']}. `enlarged`: crops from "
        "pictures of fewer rows than that, to which scaling added no detail."
    )
    levels = [f"level {n + 1}" for n in range(len(next(iter(record["results"].values()))["levels"]))]
    yield table(["", "in use", "paper, fig. 29", "perplexity", *levels, "enlarged"], rows)


def resolutions_plot(record: Record) -> str:
    rows = [(int(height), row) for height, row in record["results"].items()]
    lines = {
        "pyratok-nano": [(height, row["percent"]) for height, row in rows],
        "paper, fig. 29": [(height, row["paper_percent"]) for height, row in rows],
    }
    return curves(lines, title="Words in use: percent", x_label="rows of the picture", from_zero=True, log_x=True)


SECTIONS = (
    Section(
        name="wan",
        title="Wan 2.1 VAE against diffusers",
        text="The same random weights in our one-pass executor and in diffusers' `AutoencoderKLWan`.",
        tables=wan_tables,
        plot=wan_plot,
    ),
    Section(
        name="nano",
        title="pyratok-nano",
        text="Video to tokens and back with the embedded model.",
        tables=nano_tables,
        plot=nano_plot,
    ),
    Section(
        name="lfq",
        title="LFQ and its entropies",
        text="A word is a product of bits, so that no table over words is needed; the joint entropy of a batch is "
        "bounded from above by sums over bits or over groups of them.",
        tables=lfq_tables,
    ),
    Section(
        name="large",
        title="1080p to 8K in a given memory",
        text="Tiles with a full halo in a plan made for a budget; video in and out as 8-bit pictures.",
        tables=large_tables,
        plot=large_plot,
    ),
    Section(
        name="long",
        title="A long video",
        text="A stream's memory is that of one push, however long it runs.",
        tables=long_tables,
        plot=long_plot,
    ),
    Section(
        name="seams",
        title="Seams of tiles where attention sees the whole frame",
        text="Tiles of pyratok-nano are exact; those of a model with Wan 2.1's middle attention are not. The seam "
        "ratio is 1 where a border looks like any other place; bits are those that tiles change in tokens.",
        tables=seams_tables,
    ),
    Section(
        name="resolutions",
        title="Vocabulary by resolution",
        text="At a number of tokens that is the same for every resolution, since more tokens alone show more words.",
        tables=resolutions_tables,
        plot=resolutions_plot,
    ),
)
