"""Two processes train what one does: the same losses, stopped, killed and resumed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny_ranks
from pyratok.data.datasets import batches, to_signed
from pyratok.train.checkpoint import latest_checkpoint
from pyratok.train.objectives import Objective, Part
from pyratok.train.ranks import Ranks, join_ranks
from pyratok.train.trainer import train
from subprocesses import SOURCE, run_python
from tiny_ranks import BATCH, STEPS, WORLD, Captioned, config, language_objective
from tiny_training import clips, tiny_objective

SCRIPT = Path(tiny_ranks.__file__)
LAUNCH = f"--multi_gpu --num_processes {WORLD} --num_machines 1 --main_process_port 0 --mixed_precision no".split()


@dataclass(frozen=True, kw_only=True)
class Launch:
    out: Path
    code: int
    errors: str
    seconds: float


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """All runs of two processes, one after another; in the last one a process is killed."""
    pytest.importorskip("accelerate")
    out = tmp_path_factory.mktemp("ranks")
    command = ["-m", "accelerate.commands.launch", *LAUNCH, "--dynamo_backend", "no", str(SCRIPT), str(out)]
    paths = os.pathsep.join(map(str, (SOURCE, SCRIPT.parent)))
    done = run_python(*command, PYTHONPATH=paths, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    last = max((path.stat().st_mtime for path in (out / "killed").rglob("*")), default=time.time())
    return Launch(out=out, code=done.returncode, errors=done.stderr, seconds=time.time() - last)


def records(out: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "clips_per_second"} for line in lines]


def newest(out: Path) -> Path:
    found = latest_checkpoint(out / "checkpoints")
    assert found is not None
    return found


def check_same_losses(found: Path, expected: Path, steps: int) -> None:
    ours, theirs = records(found), records(expected)
    assert [record["step"] for record in ours] == list(range(1, steps + 1))
    for a, b in zip(ours, theirs, strict=True):
        # dB are large numbers; the norm of a gradient moves where a sign of a token flips.
        assert a.pop("grad_norm") == pytest.approx(b.pop("grad_norm"), rel=1e-2), f"step {a['step']}"
        assert a == pytest.approx(b, abs=1e-4, rel=1e-4), f"step {a['step']}"


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.mark.parametrize(
        ("name", "run", "steps"),
        [
            ("tokenizer", tiny_ranks.train_tokenizer, STEPS),
            ("language", tiny_ranks.train_language, STEPS),
            ("accumulated", lambda out: tiny_ranks.train_tokenizer(out, steps=4, accumulate=2), 4),
        ],
    )
    def test_learn_what_one_does(
        self, launch: Launch, tmp_path: Path, name: str, run: Callable[[Path], None], steps: int
    ) -> None:
        assert (launch.out / name / "log.jsonl").exists(), launch.errors
        run(tmp_path)
        check_same_losses(launch.out / name, tmp_path, steps)
        ours, theirs = (load_file(newest(out) / "average.safetensors") for out in (launch.out / name, tmp_path))
        assert all(torch.allclose(value, theirs[key], atol=1e-3) for key, value in ours.items())

    def test_a_signal_to_one_stops_all_after_the_same_step(self, launch: Launch) -> None:
        assert newest(launch.out / "stopped").name == "step-00000004", launch.errors

    def test_the_batch_of_each_is_kept_when_the_loss_of_one_is_not_finite(self, launch: Launch) -> None:
        for rank in range(WORLD):
            message = (launch.out / f"exploded-{rank}.txt").read_text()
            assert message.startswith("loss or gradient not finite at step 2; see ")
            assert message.endswith(f"bad-batch-rank{rank}.safetensors")
            kept = load_file(launch.out / "exploded" / f"bad-batch-rank{rank}.safetensors")["video"]
            first = 2 * BATCH + rank * BATCH // WORLD
            clean = clips(STEPS * BATCH)
            assert torch.equal(kept[1], to_signed(clean[first + 1]))
            assert bool((kept[0] == 1).all()) == (rank == 1)
        assert newest(launch.out / "exploded").name == "step-00000002"

    def test_the_batch_is_that_of_all(self, launch: Launch) -> None:
        for rank in range(WORLD):
            message = (launch.out / f"uneven-{rank}.txt").read_text()
            assert message.startswith("batch_size 3 is that of all processes; it does not divide among 2 processes")
        assert not (launch.out / "uneven").exists()

    def test_when_one_is_killed_the_others_say_so_and_the_run_can_be_resumed(
        self, launch: Launch, tmp_path: Path
    ) -> None:
        assert launch.code != 0
        assert "LostRankError: rank 0: another process of this run ended or hangs" in launch.errors
        assert launch.seconds < 120  # a launcher's patience is 30 s
        killed = launch.out / "killed"
        assert newest(killed).name == "step-00000006"
        train(tiny_objective(), clips(STEPS * BATCH), config(), killed, resume=True)
        check_same_losses(killed, launch.out / "tokenizer", STEPS)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_take_turns_at_the_batches(world: int) -> None:
    whole = list(batches(clips(14), 2, workers=0))[: 7 // world * world]
    for start in (0, 1):
        shares = [list(batches(clips(14), 2, start, workers=0, rank=rank, world=world)) for rank in range(world)]
        turns = [batch for turn in zip(*shares, strict=False) for batch in turn]
        assert len(turns) == len(whole) - start * world
        assert all(torch.equal(a, b) for a, b in zip(turns, whole[start * world :], strict=True))


@pytest.mark.parametrize("name", ["tokenizer", "language"])
def test_parts_of_a_step_draw_what_the_whole_step_does(name: str) -> None:
    """Same choices for a clip, however the step is divided; and what has no batch axis is the same for all."""
    objective: Objective = tiny_objective() if name == "tokenizer" else language_objective()
    dataset: Any = clips(6) if name == "tokenizer" else Captioned()

    def prepared(first: int, size: int, part: Part | None = None) -> dict[str, Tensor]:
        torch.manual_seed(1)
        video, choices = objective.prepare(dataset.collate([dataset[i] for i in range(first, first + size)]), part)
        return {"video": video, **choices}

    whole = prepared(0, 6)
    assert len(whole["kept_levels"].unique()) > 1
    parts = [prepared(first, 2, Part(first=first, size=2, total=6)) for first in (0, 2, 4)]
    for key, value in whole.items():
        cut = [part[key] for part in parts]
        if key in ("window", "vocabulary", "bit_order"):
            assert all(torch.equal(found, value) for found in cut), key
        else:
            # Sums over a text may round otherwise where it is padded to another length.
            assert torch.allclose(torch.cat(cut).float(), value.float(), atol=1e-6), key


def test_a_process_of_its_own_is_the_only_rank() -> None:
    ranks = join_ranks()
    assert (ranks.first, ranks.world, ranks.accelerator) == (True, 1, None)
    objective = tiny_objective()
    assert ranks.wrap(objective, compiled=False) is objective
    assert ranks.mean({"a": 0.1}) == {"a": 0.1}
    assert ranks.any(True, False) == (True, False)
    with ranks.first_alone(), ranks.syncing(objective, wanted=False):
        ranks.wait()


def test_sharded_models_are_refused_before_anything_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    for name, value in {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="does not shard models"):
        join_ranks()
    assert not torch.distributed.is_initialized()


def test_only_broken_connections_are_lost_ranks() -> None:
    for ranks in (Ranks(device=torch.device("cpu")), Ranks(device=torch.device("cpu"), rank=1, world=2)):
        with pytest.raises(RuntimeError, match="shapes do not fit") as error, ranks.naming_lost_ranks():
            raise RuntimeError("shapes do not fit")
        assert type(error.value) is RuntimeError
