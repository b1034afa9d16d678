from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import tiny_training
from pyratok.data.datasets import to_signed
from pyratok.train import checkpoint
from pyratok.train.checkpoint import latest_checkpoint
from pyratok.train.objectives import LossWeights, Named, TokenizerObjective
from pyratok.train.trainer import NonFiniteLossError, StopRequest, TrainConfig, moving_average, train
from subprocesses import SOURCE, run_python
from tiny_training import OPTIM, STEPS, clips, settings, tiny_objective

SCRIPT = Path(tiny_training.__file__)
PATHS = os.pathsep.join(map(str, (SOURCE, SCRIPT.parent)))


def records(out: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "clips_per_second"} for line in lines]


def newest(out: Path) -> Path:
    found = latest_checkpoint(out / "checkpoints")
    assert found is not None
    return found


def tensors(folder: Path) -> dict[str, Tensor]:
    return {f"{path.stem}.{k}": v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def check_resume(folder: Path, workers: int = 0, log_every: int = 1, optimizer: str = "muon") -> None:
    whole, cut = folder / "whole", folder / "cut"
    config = settings(workers=workers, log_every=log_every, optim=replace(OPTIM, name=optimizer))
    tiny_training.run(whole, config)

    options = ["--workers", str(workers), "--log-every", str(log_every), "--optimizer", optimizer, "--kill-at", "6"]
    killed = run_python(str(SCRIPT), str(cut), *options, PYTHONPATH=PATHS)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # It died after the record of step 6 and before its checkpoint.
    assert newest(cut).name == "step-00000005"
    assert records(cut)[-1]["step"] == 6
    with (cut / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "los')  # as a kill while writing leaves it

    tiny_training.run(cut, config, resume=True)
    assert [record["step"] for record in records(cut)] == sorted({*range(log_every, STEPS, log_every), STEPS})
    assert records(cut) == records(whole)
    ours, theirs = tensors(newest(cut)), tensors(newest(whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    check_resume(tmp_path)


@pytest.mark.slow
def test_resume_with_a_loader_process_and_a_mean_half_way(tmp_path: Path) -> None:
    check_resume(tmp_path, workers=1, log_every=3)


def test_resume_with_adamw_whose_fused_step_minds_the_memory_layout(tmp_path: Path) -> None:
    check_resume(tmp_path, optimizer="adamw")


@pytest.mark.slow
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_and_ends_well(tmp_path: Path, name: signal.Signals) -> None:
    """Trainer and loader get it at the same time, as from a terminal, a container or a job queue."""
    out = tmp_path / "run"
    command = [sys.executable, str(SCRIPT), str(out), "--steps=100000", "--workers=1", "--checkpoint-minutes=60"]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": PATHS}, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        log = out / "log.jsonl"
        while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
            time.sleep(0.05)
        os.killpg(process.pid, name)
        _, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert newest(out).name == f"step-{records(out)[-1]['step']:08d}"


class TestStopRequest:
    def test_second_request_stops_at_once(self) -> None:
        stop = StopRequest()
        stop.handle(signal.SIGTERM, None)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            stop.handle(signal.SIGTERM, None)

    def test_launchers_repeat_themselves(self) -> None:
        stop = StopRequest(patient=True)
        stop.handle(signal.SIGTERM, None)
        stop.handle(signal.SIGTERM, None)
        assert stop.requested

    def test_handlers_are_given_back(self, tmp_path: Path) -> None:
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        seen: list[Any] = []
        tiny_training.run(
            tmp_path, settings(steps=1), on_log=lambda record: seen.append(signal.getsignal(signal.SIGTERM))
        )
        assert seen[0] != before[0]
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before

    def test_who_lost_a_rank_can_say_so_before_the_launcher_ends_it(self) -> None:
        script = (
            "import os, signal\n"
            "from pyratok.train.ranks import LostRankError\n"
            "from pyratok.train.trainer import stop_on_signals\n"
            "try:\n"
            "    with stop_on_signals(patient=True):\n"
            "        raise LostRankError('another process ended')\n"
            "finally:\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
        )
        done = run_python("-c", script)
        assert done.returncode == 1
        assert done.stderr.endswith("LostRankError: another process ended\n")

    def test_training_in_a_thread_works_without_signals(self, tmp_path: Path) -> None:
        thread = threading.Thread(target=tiny_training.run, args=(tmp_path, settings(steps=1)))
        thread.start()
        thread.join()
        assert newest(tmp_path).name == "step-00000001"

    def test_stops_after_the_running_step(self, tmp_path: Path) -> None:
        def ask(record: dict[str, Any]) -> None:
            if record["step"] == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        tiny_training.run(tmp_path, settings(checkpoint_minutes=60.0), on_log=ask)
        assert [record["step"] for record in records(tmp_path)] == [1, 2]
        assert newest(tmp_path).name == "step-00000002"


class Exploding(TokenizerObjective):
    """Not a number from the third step on."""

    calls = 0

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        terms, metrics = super().terms(video, **choices)
        self.calls += 1
        return {**terms, "l1": terms["l1"] * float("nan" if self.calls > 2 else 1)}, metrics


def test_what_is_frozen_stays_to_the_last_bit(tmp_path: Path) -> None:
    objective = tiny_objective()
    frozen = objective.model.vae.encoder.conv_in.weight.requires_grad_(False)
    with torch.no_grad():
        frozen.mul_(0).neg_()  # zeros, half of them negative: another sign would be another fingerprint
    before = frozen.clone()
    assert torch.signbit(before).any()
    averaged = train(objective, clips(24), settings(steps=12, optim=replace(OPTIM, ema_decay=0.9)), tmp_path)
    after = averaged.vae.encoder.conv_in.weight
    assert torch.equal(torch.signbit(after), torch.signbit(before))


def test_nan_stops_and_keeps_the_batch(tmp_path: Path) -> None:
    plain = tiny_objective()
    dataset = clips(2 * STEPS)
    with pytest.raises(NonFiniteLossError, match=r"at step 2; see .*bad-batch.safetensors"):
        train(Exploding(plain.model, plain.weights), dataset, settings(), tmp_path)
    batch = load_file(tmp_path / "bad-batch.safetensors")["video"]
    assert torch.equal(batch, to_signed(torch.stack([dataset[4], dataset[5]])))
    assert newest(tmp_path).name == "step-00000002"
    assert all(bool(value.isfinite().all()) for value in tensors(newest(tmp_path)).values())


class TestAccumulation:
    """Terms that are means over clips, in one pass and in several."""

    def losses(self, out: Path, accumulate: int) -> list[dict[str, Any]]:
        plain = tiny_objective()
        config = settings(steps=3, batch_size=4, accumulate=accumulate, optim=replace(OPTIM, lr=1e-3))
        train(TokenizerObjective(plain.model, LossWeights(batch_entropy=0)), clips(12), config, out)
        return [{k: v for k, v in record.items() if "bit" not in k} for record in records(out)]

    def test_does_not_change_what_is_learned(self, tmp_path: Path) -> None:
        whole = self.losses(tmp_path / "1", 1)
        for accumulate in (2, 4):
            found = self.losses(tmp_path / str(accumulate), accumulate)
            for ours, theirs in zip(found, whole, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-4), accumulate

    def test_micro_batches_are_equal(self) -> None:
        with pytest.raises(ValueError, match="3 micro-batches do not divide a batch of 8 clips evenly"):
            TrainConfig(steps=1, batch_size=8, accumulate=3)


class TestRuns:
    def test_a_run_is_not_overwritten(self, tmp_path: Path) -> None:
        tiny_training.run(tmp_path, settings(steps=2))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match="already holds checkpoints; pass --resume"):
            tiny_training.run(tmp_path, settings(steps=3))
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_a_finished_run_may_be_resumed_and_lengthened(self, tmp_path: Path) -> None:
        tiny_training.run(tmp_path, settings(steps=2))
        first = tensors(newest(tmp_path))
        tiny_training.run(tmp_path, settings(steps=2), resume=True)
        again = tensors(newest(tmp_path))
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        tiny_training.run(tmp_path, settings(steps=3), resume=True)
        assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"seed": 1}, r"train\.seed = 0, not 1"),
            ({"batch_size": 1}, r"train\.batch_size = 2, not 1"),
            ({"optim": replace(OPTIM, lr=1e-3)}, r"train\.optim\.lr = 0\.01, not 0\.001"),
        ],
    )
    def test_another_run_is_not_gone_on_with(self, tmp_path: Path, changes: dict[str, Any], field: str) -> None:
        tiny_training.run(tmp_path, settings(steps=1))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match=f"^{tmp_path}: this run was begun with {field};"):
            tiny_training.run(tmp_path, settings(steps=2, **changes), resume=True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_what_decides_no_loss_may_change(self, tmp_path: Path) -> None:
        tiny_training.run(tmp_path, settings(steps=1))
        tiny_training.run(tmp_path, settings(steps=2, log_every=2, checkpoint_minutes=9.0), resume=True)
        assert newest(tmp_path).name == "step-00000002"

    def test_too_few_clips_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="8 steps of 2 clips need more than 15 clips"):
            train(tiny_objective(), clips(15), settings(), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_full_disk_leaves_the_last_good_checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = tmp_path / "whole"
        tiny_training.run(whole, settings())
        out, write = tmp_path / "run", save_file
        written: list[Path] = []

        def fill(content: dict[str, Tensor], path: Path) -> None:
            written.append(path)
            if len(written) > 14:  # in the middle of the fourth checkpoint
                path.write_bytes(b"a beginning")
                raise OSError(28, "No space left on device")
            write(content, path)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", fill)
            with pytest.raises(OSError, match="No space left"):
                tiny_training.run(out, settings())
        assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
        tiny_training.run(out, settings(), resume=True)
        assert records(out) == records(whole)

    def test_returns_the_average(self, tmp_path: Path) -> None:
        averaged = tiny_training.run(tmp_path, settings(steps=2))
        saved = load_file(newest(tmp_path) / "average.safetensors")
        assert all(torch.equal(value, saved[name]) for name, value in averaged.state_dict().items())
        model = load_file(newest(tmp_path) / "model.safetensors")
        assert any(not torch.equal(value, model[name]) for name, value in saved.items())

    @pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "frames", "size", "log_every"])
    def test_settings_are_checked(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            TrainConfig(**{"steps": 1} | {name: 0})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("seed", -1),
            ("seed", 1 << 40),
            ("workers", -1),
            ("checkpoint_minutes", -1.0),
            ("checkpoint_minutes", math.nan),
        ],
    )
    def test_what_no_run_can_have_is_refused(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}$"):
            TrainConfig(**{"steps": 1, name: value})


class TestMovingAverage:
    def averages(self, decay: float, values: list[float]) -> list[float]:
        model = torch.nn.Linear(1, 1, bias=False)
        average = AveragedModel(model, multi_avg_fn=moving_average(decay))
        seen = []
        for value in values:
            torch.nn.init.constant_(model.weight, value)
            average.update_parameters(model)
            seen.append(average.get_parameter("module.weight").item())
        return seen

    def test_starts_with_the_first_weights_and_stays_between(self) -> None:
        seen = self.averages(0.999, [5.0, 1.0, 1.0, 1.0])
        assert seen[0] == 5
        assert all(1 < later < earlier for earlier, later in pairwise(seen))

    def test_early_weights_are_soon_forgotten(self) -> None:
        assert self.averages(0.999, [0.0] + [1.0] * 60)[-1] > 0.999

    def test_decay_is_reached_in_the_long_run(self) -> None:
        seen = self.averages(0.5, [0.0] * 20 + [1.0])
        assert seen[-1] == pytest.approx(0.5)
