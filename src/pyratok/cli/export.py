"""``pyratok export``: graphs that run without pyratok, and weights that take less room."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyratok.cli import common
from pyratok.cli.common import JsonOption, ModelOption, Output, ShownStopwatch
from pyratok.report.units import human_bytes

if TYPE_CHECKING:
    from pyratok.runtime.export import Format

app = typer.Typer(help="Write a model for other runtimes, or with smaller weights.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="A new or empty folder.")]
FixedFramesOption = Annotated[
    int | None,
    typer.Option("--frames", min=1, metavar="T", help="Fix the number of frames; default: any, from a few up."),
]
FixedSizeOption = Annotated[
    str | None, typer.Option("--size", metavar="HxW", help="Fix rows and columns, such as 256x448; default: any.")
]


class WeightType(str, Enum):
    """How weights are stored."""

    bf16 = "bf16"
    int8 = "int8"


@app.command()
def onnx(
    output: FolderOption,
    frames: FixedFramesOption = None,
    size: FixedSizeOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Encoder and decoder as ONNX files (needs pyratok[export])."""
    _graphs("onnx", output, frames, size, model, json_file)


@app.command()
def torch(
    output: FolderOption,
    frames: FixedFramesOption = None,
    size: FixedSizeOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Encoder and decoder as programs of torch.export (.pt2)."""
    _graphs("torch", output, frames, size, model, json_file)


@app.command()
def weights(
    output: FolderOption,
    dtype: Annotated[WeightType, typer.Option("--dtype", help="Type of the stored weights.")],
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """The model with smaller weights, for --model: bfloat16, or int8 with a scale per output channel."""
    from torch import bfloat16, int8

    from pyratok.model.baseline import BaselineTokenizer
    from pyratok.model.pyratok import PyraTok
    from pyratok.runtime.export import check_new

    out, watch = Output(json_file, output, model), ShownStopwatch()
    check_new(output)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    if not isinstance(tokenizer, PyraTok | BaselineTokenizer):
        raise ValueError(f"{tokenizer.name} is not of pyratok's own format; only such models are stored")
    with watch.step("writing the weights"):
        tokenizer.save_pretrained(output, dtype={WeightType.bf16: bfloat16, WeightType.int8: int8}[dtype])
        stored = common.load_model(str(output))
    size = sum(path.stat().st_size for path in output.iterdir())
    shown = {
        "wrote": output,
        "size": human_bytes(size),
        "model": f"{stored.model_id}, a model of its own: rounded weights give other ids than {tokenizer.model_id}",
    }
    out.facts(shown)
    fingerprints = {"fingerprint": stored.model_id.fingerprint, "made_from": tokenizer.model_id.fingerprint}
    out.finish({"output": output, "dtype": dtype.value, "bytes": size, "name": tokenizer.name} | fingerprints)


def _graphs(
    format: Format, output: Path, frames: int | None, size: str | None, model: str | None, json_file: str | None
) -> None:
    out, watch = Output(json_file, output, model), ShownStopwatch()
    height_width = None if size is None else parse_size(size)
    from pyratok.runtime.export import check_new, export_graphs

    check_new(output)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    with watch.step("exporting encoder and decoder"):
        facts = export_graphs(tokenizer, output, format, frames=frames, size=height_width)
    out.facts({"wrote": output} | readable_facts(facts))
    out.finish({"output": output} | facts | {"seconds": watch.seconds})


def parse_size(text: str) -> tuple[int, int]:
    """Rows and columns of ``HxW``."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise ValueError(f"--size is rows x columns, such as 256x448, got {text!r}")
    return int(found[1]), int(found[2])


def readable_facts(facts: dict[str, Any]) -> dict[str, str]:
    """What a person wants to know of an export."""
    checked = facts["checked"]
    shown = {
        name: ", ".join(f"{value['name']} [{', '.join(map(str, value['shape']))}]" for value in graph["inputs"])
        for name, graph in facts["graphs"].items()
    }
    if facts["why_fixed"] is not None:
        shown["sizes"] = f"fixed, since with open ones {facts['why_fixed']}"
    shown["checked"] = (
        f"{checked['flipped_bits']} of {checked['bits']:,} bits differ, pixels by {checked['largest_pixel_error']:.1e}"
    )
    return shown | {"model": f"{facts['model']['name']} ({facts['model']['fingerprint']})"}
