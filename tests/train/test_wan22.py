"""The full-scale recipe on tiny random models of the real classes."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrained import WAN22, save_dinov3, save_qwen_vl, save_wan22
from pyratok.cli.train import build_plan
from pyratok.data.video_io import save_video
from pyratok.model.pretrained import from_pretrained
from pyratok.model.pyratok import PyraTok
from pyratok.recipes.wan22 import ALIGNED, wan22
from pyratok.text.hf import HFTextEncoder
from pyratok.text.references import DinoReference
from pyratok.train.assembly import build_objective, load_init, resolve
from pyratok.train.dryrun import outline_plan
from pyratok.train.language import LanguageObjective
from pyratok.train.stages import Plan, run_plan
from tiny import random_video

transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.skipif(
    not (hasattr(transformers, "DINOv3ViTModel") and hasattr(transformers, "Qwen2_5_VLTextModel")),
    reason="this transformers has no DINOv3 or no Qwen2.5-VL",
)
SHAPES = ((17, 48, 64), (5, 40, 40), (9, 64, 40), (5, 64, 64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pretrained")
    save_wan22(root / "wan")
    save_qwen_vl(root / "qwen")
    save_dinov3(root / "dino")
    return root


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of several shapes in which a square moves, with captions."""
    root = tmp_path_factory.mktemp("media")
    with (root / "captions.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["path", "caption"])
        for number, (frames, height, width) in enumerate(SHAPES):
            clip = np.random.default_rng(number).uniform(-0.3, 0.3, (1, 3, frames, height, width)).astype(np.float32)
            for t in range(frames):
                clip[:, 0, t, 8:24, t : t + 16] = 1
            save_video(torch.from_numpy(clip), root / f"{number}.mp4", fps=10)
            table.writerow([f"{number}.mp4", "a red square moves"])
    return root


def tiny_settings(folders: Path) -> dict[str, Any]:
    """What a user would say by ``--set``."""
    return {
        "sources.vae": str(folders / "wan"),
        "sources.text": str(folders / "qwen"),
        "sources.lm": str(folders / "qwen"),
        "sources.reference": str(folders / "dino"),
        "model.lapq.width": 16,
        "model.lapq.num_heads": 2,
        "buckets": {"sides": [64], "frames": [5, 17], "multiple": 64, "aspect_ratios": [1.0, 4 / 3]},
        "train.steps": 5,
        "train.batch_size": 2,
        "train.workers": 0,
        "train.log_every": 1,
        "train.bf16": False,
        "train.losses.perceptual": 0.0,
        "lora.rank": 2,
    }


def tiny_plan(folders: Path, **changes: Any) -> Plan:
    return build_plan("wan22", tiny_settings(folders) | {key.replace("__", "."): v for key, v in changes.items()})


def test_the_numbers_of_the_paper() -> None:
    first, second, third = wan22().stages
    assert [stage.train.steps for stage in (first, second, third)] == [30_000, 60_000, 180_000]
    assert [stage.train.batch_size for stage in (first, second, third)] == [4, 4, 2]
    assert (first.train.optim.name, first.train.optim.lr, first.lora.rank, first.lora.alpha) == ("adamw", 1e-5, 16, 32)
    assert (ALIGNED.l1, ALIGNED.commitment, ALIGNED.autoregressive, ALIGNED.drift) == (2.5, 2.5, 1.5, 0.6)
    assert first.language.masking.temporal == 0.3
    assert second.language.max_text_tokens == 60
    assert first.buckets is not None
    assert third.buckets is not None
    assert (min(first.buckets.sides), max(first.buckets.sides)) == (512, 2048)
    assert (min(third.buckets.sides), max(third.buckets.sides)) == (128, 4096)
    assert (min(first.buckets.frames), max(first.buckets.frames)) == (17, 97)
    assert not first.reads_captions
    assert second.reads_captions


def test_shapes_come_from_the_folders(folders: Path) -> None:
    stage = resolve(tiny_plan(folders).stages[1])
    assert (stage.model.vae.base_dim, stage.model.vae.is_residual, stage.model.vae.patch_size) == (8, True, 2)
    assert stage.model.vae.z_dim == WAN22["z_dim"]
    assert stage.language.lm is not None
    assert stage.model.lapq.text_dim == stage.language.lm.text_dim == 32
    assert stage.language.lm.backbone == str(folders / "qwen")
    assert resolve(stage) == stage


def test_the_objective_holds_the_pretrained_models(folders: Path) -> None:
    objective = build_objective(tiny_plan(folders).stages[2], None)
    assert isinstance(objective, LanguageObjective)
    assert isinstance(objective.reference, DinoReference)
    assert isinstance(objective.texts.encoder, HFTextEncoder)
    parts = objective.model
    assert parts.lm is not None
    assert parts.projector is not None
    learning = {name for name, p in parts.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"tokenizer", "lm", "projector"}
    # What is only looked at is no part of the weights, so that neither average nor checkpoint holds it twice.
    assert not [name for name in parts.state_dict() if "backbone" in name or "dino" in name]
    assert not [name for name in learning if name.startswith("tokenizer.vae.decoder")]
    adapters = {name for name in learning if name.startswith("tokenizer.vae.encoder")}
    assert adapters
    assert all(name.endswith((".up", ".down")) for name in adapters)


@pytest.mark.slow
def test_five_steps_of_every_stage(folders: Path, media: Path, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    model = run_plan(tiny_plan(folders), [media], tmp_path / "out", on_log=records.append)
    stages = wan22().stages
    assert [(r["stage"], r["step"]) for r in records] == [(s.name, step) for s in stages for step in range(1, 6)]
    assert all(math.isfinite(value) for record in records for value in record.values() if isinstance(value, float))
    terms = {"l1", "ssim", "commitment", "sample_entropy", "batch_entropy", "hierarchical", "drift"}
    aligned = {"text_tokens", "text_words", "autoregressive"}
    for record in records:
        wanted = terms | (aligned if record["stage"] != "pretraining" else set())
        wanted |= {"retention"} if record["stage"] == "finetuning" else set()
        assert wanted <= record.keys()
        assert (aligned & record.keys()) == (aligned & wanted)
    loaded, video = from_pretrained(model), random_video(frames=5, height=64, width=64)
    tokens = loaded.encode(video)
    assert tokens.geometry.strides == ((1, 64, 64), (4, 16, 16), (4, 16, 16), (4, 16, 16))
    assert loaded.decode(tokens).shape == video.shape
    settings = json.loads((tmp_path / "out" / "2-alignment" / "recipe.json").read_text())
    assert settings["sources"]["lm"] == str(folders / "qwen")
    # A second run with the same seed goes through the same losses, from clips of the same buckets.
    again: list[dict[str, Any]] = []
    first = replace(tiny_plan(folders), stages=tiny_plan(folders).stages[:1])
    run_plan(first, [media], tmp_path / "again", on_log=again.append)
    assert [r["total"] for r in again] == pytest.approx([r["total"] for r in records[:5]], rel=1e-4)


def test_recomputing_changes_no_gradient(folders: Path) -> None:
    found = []
    for checkpointing in (False, True):
        stage = tiny_plan(folders, checkpointing=checkpointing, train__losses__autoregressive=0.0).stages[0]
        torch.manual_seed(0)
        objective = build_objective(stage, None)
        video = random_video(frames=5, height=64, width=64)
        taps = objective.model.tokenizer.vae.encode_taps(video)  # type: ignore[union-attr,operator]
        objective.model.tokenizer.vae.decode(torch.cat([taps[-1][:, :6]])).square().mean().backward()  # type: ignore
        found.append({n: p.grad for n, p in objective.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_a_run_without_a_vae_is_refused(folders: Path) -> None:
    stage = replace(wan22().stages[0], train=tiny_plan(folders).stages[0].train)
    with pytest.raises(ValueError, match=r"sources\.vae=FOLDER"):
        build_objective(stage, None)


@pytest.mark.parametrize(
    ("source", "folder", "wanted"),
    [
        ("vae", "qwen", "diffusers AutoencoderKLWan"),
        ("vae", "nowhere", "no such folder"),
        ("text", "nowhere", "no such folder"),
        ("lm", "nowhere", "causal transformers language model"),
        ("reference", "qwen", "DINOv2 or DINOv3"),
        ("text", "empty", "config.json"),
    ],
)
def test_a_wrong_folder_is_named_with_what_belongs_there(folders: Path, source: str, folder: str, wanted: str) -> None:
    (folders / "empty").mkdir(exist_ok=True)
    plan = tiny_plan(folders, **{f"sources__{source}": str(folders / folder)})
    for start in (lambda: outline_plan(plan), lambda: run_plan(plan, [], Path("never"))):
        with pytest.raises(ValueError, match=rf"sources\.{source}: .*{folder}") as refusal:
            start()
        assert wanted in str(refusal.value)
    assert not Path("never").exists()


@pytest.mark.parametrize(
    ("wrong", "right"), [("sources.vea", "sources.vae"), ("sources.referense", "sources.reference")]
)
def test_unknown_sources_are_named_by_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ValueError, match=rf"did you mean '{right}'"):
        build_plan("wan22", {wrong: "x"})


def test_buckets_are_of_footage_that_fills_the_grids() -> None:
    with pytest.raises(ValueError, match=r"footage alone; set data\.photos"):
        build_plan("wan22", {"data.photos": 0.5})
    with pytest.raises(ValueError, match=r"buckets\.multiple = 64 does"):
        build_plan("wan22", {"buckets": {"sides": [96], "frames": [17], "multiple": 48}})
    with pytest.raises(ValueError, match="load_in_4bit is for"):
        build_plan("wan22", {"sources.load_in_4bit": True})


def test_a_saved_stage_goes_on_in_the_next(folders: Path, tmp_path: Path) -> None:
    """Stage 1 has no text head; what it learned is taken over by one that has."""
    first, second, _ = (resolve(stage) for stage in tiny_plan(folders).stages)
    PyraTok(first.model).save_pretrained(tmp_path)
    model = PyraTok(second.model)
    load_init(model, tmp_path)
    saved = from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in saved.items())
