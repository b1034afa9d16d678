"""A tokenizer as two graphs that run without pyratok: ONNX files, or programs of ``torch.export``.

```
video float32 [1, 3, T, H, W] ──▶ encoder ──▶ ids_1 ... ids_L, int32 [1, t_l, h_l, w_l] ──▶ decoder ──▶ video
```

The graphs take padded clips (``1 + S k`` frames, rows and columns multiples of the strides) without a caption. They
pack signs into ids, and clamp the video to [-1, 1]. Whatever is written has been run once and held against the model.
``export.json`` beside the graphs says what they take and whose ids they speak.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import pyratok
from pyratok.model.base import VideoTokenizer
from pyratok.quantization.bits import ids_to_signs, signs_to_ids
from pyratok.types import Geometry, Stride
from pyratok.vae.hub import replacing_folder

Format = Literal["onnx", "torch"]
Run = Callable[..., Sequence[Tensor]]
Clip = tuple[int, int, int]

FORMAT, VERSION, SIDECAR = "pyratok-export", 1, "export.json"
OPSET = 18
SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
PACKAGES: dict[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}

FIXED: Clip = (17, 256, 256)
"""Frames, rows and columns (before padding) of a graph whose sizes have to be fixed and are not given."""
LEAST, MOST = 2, 4096
"""Range of a dynamic axis: latent steps after the first frame, and units of the padding in space. An axis of length one
takes another way through the network, so that a graph that has seen two does not know it."""
PROTOBUF_LIMIT = 2 * 1000**3
"""Bytes beyond which an ONNX file keeps its weights in a file beside it."""
MOST_FLIPPED = 5e-3
"""Share of the bits: rounding flips few and what follows from those, a wrong graph flips them all over the clip."""
PIXEL_TOLERANCE = 1e-4


class ExportError(ValueError):
    """A model that cannot be exported as asked, or whose graph does not repeat it."""


class EncoderGraph(nn.Module):
    """Padded video ``[1, 3, T, H, W]`` in [-1, 1] to int32 ids ``[1, t, h, w]`` per level."""

    def __init__(self, model: VideoTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> tuple[Tensor, ...]:
        return tuple(signs_to_ids(signs) for signs in self.model.signs(video, None))


class DecoderGraph(nn.Module):
    """Int32 ids ``[1, t, h, w]`` of all levels to padded video ``[1, 3, T, H, W]`` in [-1, 1], float32."""

    def __init__(self, model: VideoTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, *ids: Tensor) -> Tensor:
        return self.model.reconstruct([ids_to_signs(level, self.model.num_bits) for level in ids]).clamp(-1, 1)


def export_graphs(
    model: VideoTokenizer,
    folder: str | os.PathLike[str],
    format: Format = "onnx",
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Write ``encoder`` and ``decoder`` (``.onnx`` or ``.pt2``) and ``export.json``, whose content is returned.

    ``folder`` is new or empty; it appears whole or not at all. ``model`` is in float32. The batch is always one clip.
    ``frames`` and ``size`` (rows, columns), in padded numbers, fix these axes; without them they are dynamic, from
    ``LEAST`` up (an image, and a clip of one latent step more, need graphs of their own: ``frames=1``). Where the
    exporter cannot keep an axis dynamic, all are fixed, at ``FIXED`` where nothing else is given, and ``why_fixed`` of
    the result says so.

    Raises :class:`ExportError` for a folder that holds something, a size that is not padded, a model that cannot be
    exported or a graph that does not repeat it; ImportError naming the extra where ``format`` needs one.
    """
    target = Path(folder)
    check_new(target)
    _require(*PACKAGES[format])
    parameter = next(model.parameters())
    if parameter.dtype != torch.float32:
        raise ExportError(f"only float32 models are exported, this one is {parameter.dtype}; load it in float32")
    fixed = padded_clip(model.strides, frames, size)
    why_fixed: str | None = None
    with replacing_folder(target) as unfinished, _quiet():
        dynamic = [*(["frames"] if frames is None else []), *(["height", "width"] if size is None else [])]
        try:
            facts = _write(model, unfinished, format, fixed, dynamic)
        except ExportError as error:
            if not dynamic:
                raise
            why_fixed = str(error)
            facts = _write(model, unfinished, format, fixed, dynamic=())
        digests = {path.name: _sha256(path) for path in sorted(unfinished.iterdir())}
        facts = _header(model, format) | facts | {"why_fixed": why_fixed, "sha256": digests}
        (unfinished / SIDECAR).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def check_new(folder: Path) -> None:
    """Refuse, with :class:`ExportError`, a folder that holds something or that cannot be made."""
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file; name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ExportError(f"{folder} is not empty; name a new folder")
    if not folder.parent.is_dir():
        raise ExportError(f"cannot make {folder}: there is no folder {folder.parent}; create it first")


def padded_clip(strides: Sequence[Stride], frames: int | None, size: tuple[int, int] | None) -> Clip:
    """Frames, rows and columns of a graph with fixed sizes: as given, which must be padded, else ``FIXED`` padded."""
    height, width = FIXED[1:] if size is None else size
    asked = (FIXED[0] if frames is None else frames, height, width)
    padded = _geometry(strides, asked).padded
    given = (frames is not None, size is not None, size is not None)
    if any(is_given and a != p for is_given, a, p in zip(given, asked, padded, strict=True)):
        raise ExportError(
            f"a graph takes padded clips, {asked[0]} frames of {asked[1]}x{asked[2]} (rows x columns) are not; "
            f"ask for {padded[0]} frames of {padded[1]}x{padded[2]}"
        )
    return padded


def shapes(strides: Sequence[Stride], steps: Any, rows: Any, columns: Any) -> tuple[tuple[Any, ...], ...]:
    """Shape of the video, then of the ids of every level.

    ``steps``: latent steps after the first frame; ``rows`` and ``columns``: units of the padding in space. Each a
    number, or an axis of ``torch.export``, for which the same arithmetic holds.
    """
    latent, height, width = _units(strides)
    video = (1, 3, steps * latent + 1, rows * height, columns * width)
    ids = [(1, steps * (latent // t) + 1, rows * (height // h), columns * (width // w)) for t, h, w in strides]
    return video, *ids


def _write(model: VideoTokenizer, folder: Path, format: Format, fixed: Clip, dynamic: Sequence[str]) -> dict[str, Any]:
    """Export, write and check both graphs; the facts about them."""
    from torch.export import Dim, ExportedProgram, export

    latent, height, width = _units(model.strides)
    numbers = ((fixed[0] - 1) // latent, fixed[1] // height, fixed[2] // width)
    names = dict(zip(("frames", "height", "width"), ("steps", "rows", "columns"), strict=True))
    is_open = [name in dynamic for name in names]
    # Small and all different while traced, and others while checked: a size that was taken for granted shows.
    traced, checked = (
        [small if free else number for free, number, small in zip(is_open, numbers, sizes, strict=True)]
        for sizes in ((3, 4, 5), (2, 3, 2))
    )
    axes = [
        Dim(name, min=LEAST, max=MOST) if free else number
        for free, name, number in zip(is_open, names.values(), numbers, strict=True)
    ]
    video_shape, *ids_shapes = shapes(model.strides, *axes)
    video, ids = _example(model, traced)
    levels = [f"ids_{level + 1}" for level in range(model.num_levels)]
    graphs: dict[str, Any] = {}
    runs: list[Run] = []
    for name, graph, inputs, dynamic_shapes, taken, given in (
        ("encoder", EncoderGraph(model), (video,), {"video": _open_axes(video_shape)}, ["video"], levels),
        ("decoder", DecoderGraph(model), ids, {"ids": tuple(map(_open_axes, ids_shapes))}, levels, ["video"]),
    ):
        path = folder / f"{name}{SUFFIX[format]}"
        try:
            with torch.no_grad():
                program: ExportedProgram = export(graph, inputs, dynamic_shapes=dynamic_shapes, strict=False)
            runs.append((_write_onnx if format == "onnx" else _write_torch)(program, path, taken, given))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # exporters have no documented error for what they cannot do
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ExportError(f"the exporter gave up on the {name}: {cause}") from error
        described = {"video": ("float32", video_shape)} | {
            level: ("int32", shape) for level, shape in zip(levels, ids_shapes, strict=True)
        }
        graphs[name] = {
            "file": path.name,
            "inputs": [_described(key, *described[key]) for key in taken],
            "outputs": [_described(key, *described[key]) for key in given],
        }
    return {"dynamic": list(dynamic), "graphs": graphs, "checked": _check(model, runs, checked)}


def _write_onnx(program: Any, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    """Write an ONNX file and run it with onnxruntime."""
    import onnxruntime

    # The same operator by the name that ONNX knows.
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.__rshift__.Tensor:
            node.target = torch.ops.aten.bitwise_right_shift.Tensor
    is_large = sum(value.nbytes for value in program.state_dict.values()) > PROTOBUF_LIMIT
    names = {"input_names": list(inputs), "output_names": list(outputs)}
    onnx = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)  # type: ignore[arg-type]
    assert onnx is not None
    onnx.save(path, external_data=is_large)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*values: Tensor) -> list[Tensor]:
        fed = {name: value.numpy() for name, value in zip(inputs, values, strict=True)}
        return [torch.from_numpy(value) for value in session.run(list(outputs), fed)]

    return run


def _write_torch(program: Any, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    """Write a program of ``torch.export``, and load it again."""
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    def run(*values: Tensor) -> list[Tensor]:
        found = module(*values)
        return [found] if isinstance(found, Tensor) else list(found)

    return run


@torch.no_grad()
def _check(model: VideoTokenizer, runs: Sequence[Run], numbers: Sequence[int]) -> dict[str, Any]:
    """Hold the files against the model on noise; ExportError where they are no repetition of it."""
    encode, decode = runs
    video, _ = _example(model, numbers)
    wanted = EncoderGraph(model)(video)
    found = encode(video)
    bits = [[ids_to_signs(ids, model.num_bits) for ids in side] for side in (wanted, found)]
    flipped = sum(int((a != b).sum()) for a, b in zip(*bits, strict=True))
    total = sum(level.numel() for level in bits[0])
    error = float((decode(*wanted)[0] - DecoderGraph(model)(*wanted)).abs().max())
    if flipped > MOST_FLIPPED * total or not error <= PIXEL_TOLERANCE:
        raise ExportError(
            f"the exported graphs do not repeat the model: {flipped} of {total} bits differ, pixels by {error:.2g}"
        )
    return {"clip": list(video.shape[2:]), "bits": total, "flipped_bits": flipped, "largest_pixel_error": error}


def _example(model: VideoTokenizer, numbers: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Noise in the shapes of :func:`shapes`: video in [-1, 1] and ids."""
    generator = torch.Generator().manual_seed(0)
    video_shape, *ids_shapes = shapes(model.strides, *numbers)
    video = torch.rand(video_shape, generator=generator) * 2 - 1
    most = 1 << model.num_bits
    return video, tuple(torch.randint(most, shape, generator=generator, dtype=torch.int32) for shape in ids_shapes)


def _header(model: VideoTokenizer, format: Format) -> dict[str, Any]:
    latent, height, width = _units(model.strides)
    packages = ("torch", *PACKAGES[format])
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": format,
        "model": {"name": model.model_id.name, "fingerprint": model.model_id.fingerprint},
        "num_bits": model.num_bits,
        "strides": [list(stride) for stride in model.strides],
        "padding": {"frames": f"1 + {latent} n", "height": f"{height} n", "width": f"{width} n"},
        "versions": {"pyratok": pyratok.__version__}
        | {name: str(import_module(name).__version__) for name in packages},
    }


def _described(name: str, dtype: str, shape: Sequence[Any]) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": [n if isinstance(n, int) else n.__name__ for n in shape]}


def _open_axes(shape: Sequence[Any]) -> tuple[Any, ...]:
    """The axes that stay open; None for those of a fixed size."""
    return tuple(None if isinstance(axis, int) else axis for axis in shape)


def _geometry(strides: Sequence[Stride], clip: Clip) -> Geometry:
    return Geometry(frames=clip[0], height=clip[1], width=clip[2], strides=tuple(strides))


def _units(strides: Sequence[Stride]) -> Clip:
    """Frames of a latent step, and what rows and columns are multiples of."""
    pixel = _geometry(strides, (1, 1, 1))
    return pixel.latent_stride, pixel.padded[1], pixel.padded[2]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _require(*packages: str) -> None:
    for name in packages:
        try:
            import_module(name)
        except ImportError:
            raise ImportError(
                f"export needs the package {name}, which is not installed: pip install pyratok[export]"
            ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn, and log, about their own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
