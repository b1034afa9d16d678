"""Plans fit, cost little, and are refused with the budget that would do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyratok.model.pyratok import PyraTok
from pyratok.recipes.nano import MODEL
from pyratok.runtime.memory import parse_bytes
from pyratok.runtime.planner import (
    HEADROOM,
    Direction,
    MemoryBudgetError,
    Plan,
    _chunk_peak,
    _clip_peak,
    pass_need,
    plan,
)
from pyratok.runtime.tiling import encode_tiled
from subprocesses import run_python
from tiny import CONFIG, VAE, random_video, tiny_pyratok

EIGHT_K = (17, 4320, 7680)
# A process that has imported torch and loaded nano, as measured, and a clip that lies in memory as bytes.
RESIDENT = 400 << 20
PIXELS = 3 * 17 * 4320 * 7680


@pytest.fixture(scope="module")
def nano() -> PyraTok:
    return PyraTok(MODEL).eval()


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_8k_fits(nano: PyraTok, direction: Direction) -> None:
    """17 frames of 7680x4320, the bytes of the clip in memory too."""
    plans = [plan(nano, EIGHT_K, memory, direction, resident=RESIDENT, extra=PIXELS) for memory in ("3GiB", "6GiB")]
    for found in plans:
        assert found.peak <= found.budget
    assert plans[1].work < 1.5
    assert plans[1].work <= plans[0].work
    assert plans[1].peak > plans[0].budget or plans[1].work == plans[0].work
    assert "x4320x7680: " in str(plans[0])


def test_more_memory_never_costs_more_work() -> None:
    model = tiny_pyratok()
    plans: list[Plan] = []
    for mib in (112, 128, 192, 1024, 8192):
        plans.append(plan(model, (33, 1080, 1920), f"{mib}MiB", resident=0))
        assert plans[-1].peak <= plans[-1].budget
        assert plans[-1].passes >= 1
    work = [p.work for p in plans]
    assert work == sorted(work, reverse=True)
    assert plans[-1].layout.tile is None
    assert plans[-1].work == 1


def test_too_little_is_refused_with_what_would_do() -> None:
    model = tiny_pyratok()
    with pytest.raises(MemoryBudgetError, match="smallest budget that would is") as caught:
        plan(model, (33, 1080, 1920), "37MiB", resident=0)
    enough = caught.value.minimum
    assert plan(model, (33, 1080, 1920), enough, resident=0).peak == enough
    with pytest.raises(MemoryBudgetError):
        plan(model, (33, 1080, 1920), enough - 1, resident=0)
    said = str(caught.value).split("would is ")[1].split(",")[0]
    assert enough <= parse_bytes(said) < enough + (1 << 20)


def test_states_of_all_tiles_count_in_order() -> None:
    model = tiny_pyratok()
    tight = plan(model, (33, 1080, 1920), 1 << 40, resident=0)
    assert tight.layout.tile is None
    with pytest.raises(MemoryBudgetError) as tiles:
        plan(model, (33, 1080, 1920), 1, resident=0)
    with pytest.raises(MemoryBudgetError) as in_order:
        plan(model, (33, 1080, 1920), 1, resident=0, in_order=True)
    assert in_order.value.minimum > tiles.value.minimum


def test_attention_runs_whole_frames_unless_a_halo_is_given() -> None:
    model = tiny_pyratok(config=replace(CONFIG, vae=replace(VAE, mid_attention=True)))
    assert plan(model, (9, 256, 512), "8GiB", resident=0).layout.tile is None
    with pytest.raises(MemoryBudgetError) as whole:
        plan(model, (9, 256, 512), 1, resident=0)
    with pytest.raises(MemoryBudgetError) as tiles:
        plan(model, (9, 256, 512), 1, resident=0, halo=32)
    assert tiles.value.minimum < whole.value.minimum


@pytest.mark.parametrize(("steps", "chunked"), [(1, True), (4, True), (1, False), (5, False)])
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_long_and_large_passes_are_foreseen(direction: Direction, steps: int, chunked: bool) -> None:
    """What short passes over small frames predict is what one of another length and size takes."""
    model = tiny_pyratok()
    need = pass_need(model, direction, steps, chunked=chunked, local=True)
    measure = _chunk_peak if chunked else _clip_peak
    peak, state = measure(model, direction, steps, 1, (160, 176))
    assert need.tensors(160 * 176) == pytest.approx(peak, rel=0.05)
    assert need.state * 160 * 176 == pytest.approx(state, rel=0.05)
    assert (state > 0) == chunked


def test_the_model_is_left_alone() -> None:
    model = tiny_pyratok()
    video = random_video(1, 5, 48, 64)
    before = model.encode(video)
    found = plan(model, (5, 48, 64), "1GiB", resident=0)
    assert next(model.parameters()).device.type == "cpu"
    assert encode_tiled(model, video, found.layout) == before


MEASURE = """
import sys, torch
from pyratok.model.pyratok import PyraTok
from pyratok.recipes.nano import MODEL
from pyratok.runtime.memory import resident_bytes
from pyratok.runtime.planner import HEADROOM, plan
from pyratok.runtime.tiling import decode_tiled, encode_tiled
from pyratok.types import Geometry, TokenPyramid

direction, frames, size, beyond = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) << 20
torch.manual_seed(0)
model = PyraTok(MODEL).eval()
pixels = torch.zeros(frames, size, size, 3, dtype=torch.uint8)
geometry = Geometry(frames=frames, height=size, width=size, strides=model.strides)
levels = [torch.zeros(1, *geometry.grid(i), dtype=torch.int32) for i in range(model.num_levels)]
tokens = TokenPyramid(tuple(levels), geometry, model.model_id)
plan(model, (frames, size, size), "1TiB", direction)
held = resident_bytes()
chosen = plan(model, (frames, size, size), held + HEADROOM + beyond, direction, resident=held)
if direction == "encode":
    encode_tiled(model, pixels, chosen.layout)
else:
    decode_tiled(model, tokens, pixels, chosen.layout)
print(resident_bytes(peak=True) - held, chosen.peak - held, chosen, sep="|")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "beyond"), [("encode", 96), ("decode", 136)])
def test_measured_peak_is_within_the_budget(direction: str, beyond: int) -> None:
    """A budget that calls for tiles or chunks; what the process really took stays within it."""
    done = run_python("-c", MEASURE, direction, "9", "320", str(beyond))
    assert done.returncode == 0, done.stderr
    measured, predicted, chosen = done.stdout.split("|")
    assert "whole frames, all steps at once" not in chosen
    assert int(measured) <= HEADROOM + (beyond << 20)
    assert int(predicted) <= HEADROOM + (beyond << 20)
