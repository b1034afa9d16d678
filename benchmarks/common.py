"""What the benchmarks share: interleaved timing, peak memory of fresh processes, a record of where they ran."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from records import FORMAT, RESULTS, write
from torch import Tensor

import pyratok
from pyratok import Geometry, TokenPyramid, load_video
from pyratok.model.base import VideoTokenizer

HERE = Path(__file__).resolve().parent
SAMPLE = Path(pyratok.__file__).parent / "assets" / "sample.mp4"
PACKAGES = ("torch", "numpy", "diffusers", "vector-quantize-pytorch", "av")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="tiny sizes: does it run? Its figures mean nothing")
    options.add_argument("--out", type=Path, help="folder for the JSON (default: benchmarks/results; --quick: none)")
    return options


def publish(name: str, result: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the result with where and when it was measured, and keep it where the report finds it."""
    record = {
        "benchmark": name,
        "format": FORMAT,
        "quick": options.quick,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        **result,
    }
    print(json.dumps(record, indent=1))
    folder = options.out or (None if options.quick else RESULTS)
    if folder is not None:
        write(record, folder)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, and the versions that matter."""
    model, flags = "unknown processor", set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        model, flags = fields.get("model name", model), set(fields.get("flags", "").split())
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_instructions": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def commit() -> str | None:
    """What was measured: the commit of the sources, None where git does not tell."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def interleaved(candidates: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each candidate; the candidates take turns, so that a drifting machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(seconds_of(run))
    return {name: statistics.median(values) for name, values in times.items()}


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def percentile(values: list[float], share: int) -> float:
    """The value below which ``share`` percent of the values lie."""
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1] if len(values) > 1 else values[0]


def sample(frames: int, size: int) -> Tensor:
    """The sample clip, cut to a square and played forth and back: ``[1, 3, frames, size, size]`` in [-1, 1]."""
    clip = load_video(SAMPLE, size=size, crop=size).plain()
    there_and_back = torch.cat([clip, clip.flip(2)[:, :, 1:-1]], dim=2)
    return there_and_back[:, :, torch.arange(frames) % there_and_back.shape[2]]


def random_tokens(model: VideoTokenizer, frames: int, height: int, width: int) -> TokenPyramid:
    """What costs as much to decode as the tokens of a video, without encoding one."""
    geometry = Geometry(frames=frames, height=height, width=width, strides=model.strides)
    grids = (geometry.grid(level) for level in range(model.num_levels))
    levels = tuple(torch.randint(1 << model.num_bits, (1, *grid), dtype=torch.int32) for grid in grids)
    return TokenPyramid(levels, geometry, model.model_id, model.num_bits)


def frame_blocks(video: Tensor, stride: int, steps: int) -> list[Tensor]:
    """A clip ``[B, 3, T, H, W]`` in blocks of ``steps`` latent steps; the very first step is a single frame."""
    edges = [0, *range(1 + (steps - 1) * stride, video.shape[2], steps * stride), video.shape[2]]
    return [video[:, :, start:stop] for start, stop in pairwise(edges)]


def token_parts(tokens: TokenPyramid, steps: int) -> list[TokenPyramid]:
    """The tokens in parts of ``steps`` latent steps, the last one perhaps shorter."""
    total = tokens.geometry.latent_steps
    return [tokens.time_slice(start, min(start + steps, total)) for start in range(0, total, steps)]


def ratio(theirs: float, ours: float) -> float:
    """How many times less than theirs ours is."""
    return round(theirs / ours, 3)


def rounded(values: dict[str, float], digits: int = 5) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def resident_mib() -> float:
    """Memory of this process as it is now, in MiB."""
    return _status("VmRSS")


def peak_mib() -> float:
    """The most that this process ever held. Unlike ``ru_maxrss`` it does not begin with what the parent held."""
    return _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":"))) / 1024


def in_fresh_process(prepare: Callable[..., Callable[[], dict[str, Any] | None]], **arguments: Any) -> dict[str, Any]:
    """Run ``prepare(**arguments)()`` in a process of its own and tell its memory.

    ``prepare``, a function of a benchmark's module, sets up and returns the work, whose result (JSON-ready) comes back
    with ``before_mib`` (held between the two), ``peak_mib`` (the most ever, all of the process) and ``seconds`` (of
    the work). RuntimeError with what the process said where it fails, also where the system kills it.
    """
    command = [sys.executable, __file__, Path(sys.modules[prepare.__module__].__file__ or "").stem, prepare.__name__]
    done = subprocess.run([*command, json.dumps(arguments)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}({arguments}) ended with status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _work(module: str, function: str, arguments: str) -> None:
    work = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    before = resident_mib()
    start = time.perf_counter()
    facts = work() or {}
    seconds = time.perf_counter() - start
    memory = {"before_mib": round(before, 1), "peak_mib": round(peak_mib(), 1)}
    print(json.dumps({**facts, **memory, "seconds": round(seconds, 4)}))


if __name__ == "__main__":
    _work(*sys.argv[1:])
