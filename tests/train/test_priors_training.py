"""Priors learn from token shards: they get better, can be cut off, and are measured on clips that they never met."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pyratok.cli import app
from pyratok.config import to_dict
from pyratok.data.token_shards import ShardHeader, TokenRow, TokenShards, shard_path, write_index, write_shard
from pyratok.recipes import PRIORS
from pyratok.tasks.generation.files import load_prior, save_prior
from pyratok.tasks.generation.generate import build_prior, generate
from pyratok.tasks.generation.prompts import example_prompts, unseen_words
from pyratok.train.held_out import TrainingClips, bits_per_token, is_held_out, survey
from pyratok.train.objectives import LossWeights, Part
from pyratok.train.optim import OptimConfig
from pyratok.train.priors import PriorObjective, PriorRecipe, begin, run_prior
from pyratok.train.trainer import TrainConfig
from pyratok.types import Geometry, ModelId
from tiny_priors import CONFIG, GEOMETRY, KINDS, TOKENIZER, random_tokens, tiny_prior

pytest.importorskip("pyarrow")

HEADER = ShardHeader(
    model=TOKENIZER,
    num_bits=CONFIG.num_bits,
    geometry=replace(GEOMETRY, fps=None),
    text_encoder="stub",
    text_dim=CONFIG.text_dim,
)
CLIPS = 40
every_kind = pytest.mark.parametrize("kind", KINDS)


def write_toy(folder: Path, clips: int = CLIPS, header: ShardHeader = HEADER) -> Path:
    """Every place has a word of its own, whose lowest bit is up to chance; two clips of a video each."""
    folder.mkdir(exist_ok=True)
    usual, chance = random_tokens(1, seed=7), torch.Generator().manual_seed(1)
    rows = []
    for number in range(clips):
        levels = tuple(
            ids[0] ^ torch.randint(2, ids[0].shape, generator=chance, dtype=torch.int32) for ids in usual.levels
        )
        rows.append(
            TokenRow(
                clip=f"{number // 2}.mp4#{number % 2}",
                caption=f"Disc number{number}",
                fps=12.0,
                levels=levels,
                pooled=torch.randn(header.text_dim, generator=chance).half() if header.text_dim else None,
                text=torch.randn(number % 3, header.text_dim, generator=chance).half() if header.text_dim else None,
            )
        )
    half = clips // 2
    for shard, part in enumerate((rows[:half], rows[half:])):
        write_shard(shard_path(folder, shard), part, header)
    write_index(folder, header, 2)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "shards")


def recipe(kind: str = "ar", steps: int = 4, **changes: Any) -> PriorRecipe:
    train: dict[str, Any] = {
        "steps": steps,
        "batch_size": 4,
        "workers": 0,
        "bf16": False,
        "compile": False,
        "log_every": 1,
        "checkpoint_minutes": 60.0,
        "optim": OptimConfig(lr=1e-2, warmup=2, ema_decay=0.9),
    }
    own = {name: changes.pop(name) for name in list(changes) if name in train}
    shape: dict[str, Any] = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "chunk_bits": 3, "held_out": 0.2}
    kinds = {"kind": "ar"} | KINDS[kind]
    return PriorRecipe(name="toy", train=TrainConfig(**train | own), **shape | kinds | changes)


def log(out: Path) -> list[dict[str, float]]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "clips_per_second"} for line in lines]


@every_kind
def test_what_depends_on_the_place_is_learned(kind: str, shards: Path, tmp_path: Path) -> None:
    steps = 120 if kind == "scale" else 60  # each looks at one of three levels
    folder = run_prior(recipe(kind, steps=steps, batch_size=8), shards, tmp_path / "run")
    records = log(tmp_path / "run")
    assert records[-1]["nll"] < 0.5 * records[0]["nll"]
    assert {"bits_1", "bits_2", "bits_3"} <= records[0].keys()
    found = json.loads((tmp_path / "run/prior.json").read_text())
    assert found["training_clips"] + found["held_out_clips"] == CLIPS
    assert found["exact"] == (KINDS[kind].get("kind", "ar") in ("ar", "llm"))
    for level in found["levels"]:
        assert 0 < level["held_out_bits"] < level["unigram_bits"], level
    prior = load_prior(folder, TOKENIZER)
    assert generate(prior, None, GEOMETRY, steps=2).batch_size == 1
    assert unseen_words(folder, "a DISC of gold") == ["a", "gold", "of"]
    rows = TokenShards(shards, shuffle=False)
    captions = {row.caption for row in map(rows.__getitem__, range(len(rows))) if is_held_out(row.clip, 0.2)}
    assert example_prompts(folder)
    assert set(example_prompts(folder)) <= captions


def test_the_first_levels_alone(shards: Path, tmp_path: Path) -> None:
    folder = run_prior(recipe("ar", levels=2), shards, tmp_path / "run")
    found = json.loads((tmp_path / "run/prior.json").read_text())
    assert [level["level"] for level in found["levels"]] == [1, 2]
    assert "bits_3" not in log(tmp_path / "run")[0]
    assert len(generate(load_prior(folder), None, GEOMETRY).levels) == 2


@every_kind
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(kind: str, shards: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    plan = recipe(kind, steps=5, checkpoint_minutes=0.0)
    run_prior(plan, shards, whole)

    def fail(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        run_prior(plan, shards, cut, on_log=fail)
    assert not (cut / "prior").exists()
    run_prior(plan, shards, cut, resume=True)
    assert log(cut) == log(whole)
    ours, theirs = (load_file(out / "prior/model.safetensors") for out in (cut, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert (cut / "prior.json").read_text() == (whole / "prior.json").read_text()


@every_kind
@pytest.mark.parametrize("text_dim", [0, 5])
def test_parts_of_a_step_draw_what_the_whole_step_does(kind: str, text_dim: int, tmp_path: Path) -> None:
    header = replace(HEADER, text_dim=text_dim)
    data = TokenShards(write_toy(tmp_path / "shards", 6, header), text_length=3)
    objective = PriorObjective(build_prior(recipe(kind, text_dropout=0.5).config(header)))

    def prepared(first: int, size: int, part: Part | None = None) -> dict[str, Tensor]:
        torch.manual_seed(1)
        words, choices = objective.prepare(data.collate([data[n] for n in range(first, first + size)]), part)
        return {"words": words, **choices}

    whole = prepared(0, 6)
    parts = [prepared(first, 2, Part(first=first, size=2, total=6)) for first in (0, 2, 4)]
    for name, value in whole.items():
        cut = [part[name] for part in parts]
        assert torch.equal(torch.cat(cut), value) if value.ndim else all(torch.equal(x, value) for x in cut), name
    assert whole["words"].shape == (6, 1, *GEOMETRY.grid(2))
    losses = [objective(part.pop("words"), **part).scalars()["nll"] for part in parts]
    assert sum(losses) / 3 == pytest.approx(objective(whole.pop("words"), **whole).scalars()["nll"], rel=1e-5)


@every_kind
def test_bfloat16_learns_the_same(kind: str, shards: Path, tmp_path: Path) -> None:
    first = [log_of(shards, tmp_path / str(bf16), kind, bf16)[0]["nll"] for bf16 in (True, False)]
    assert first[0] == pytest.approx(first[1], rel=2e-2)


def log_of(shards: Path, out: Path, kind: str, bf16: bool) -> list[dict[str, float]]:
    run_prior(recipe(kind, steps=1, bf16=bf16), shards, out)
    return log(out)


def test_clips_of_a_video_are_on_one_side() -> None:
    apart = [is_held_out(f"{n}.mp4", 0.1) for n in range(2000)]
    assert 150 < sum(apart) < 250
    assert apart == [is_held_out(f"{n}.mp4#{n % 7}", 0.1) for n in range(2000)]
    assert not any(is_held_out(f"{n}.mp4", 0.0) for n in range(100))


def test_training_never_meets_a_clip_that_is_held_out(shards: Path) -> None:
    found = survey(TokenShards(shards, shuffle=False), 0.2)
    in_order = TokenShards(shards, shuffle=False)
    apart = {in_order[number].clip for number in found.held_out}
    assert 0 < len(apart) < CLIPS
    clips = TrainingClips(TokenShards(shards, length=3 * CLIPS, seed=3), 0.2)
    met = [clips[number].clip for number in range(3 * CLIPS)]
    assert {in_order[n].clip for n in range(CLIPS)} - apart == set(met)
    assert found.training == CLIPS - len(apart)
    assert {"disc", "number0"} & found.words == {"disc"} | ({"number0"} if not is_held_out("0.mp4", 0.2) else set())


@every_kind
def test_bits_are_those_of_the_words(kind: str, shards: Path) -> None:
    """Where every word is as likely as any other all cost their bits; for ``ar`` they are what the prior says."""
    data, prior = TokenShards(shards, shuffle=False), tiny_prior(kind)
    if kind.startswith("ar"):
        batch = data.collate([data[n] for n in range(5)])
        choices = prior.draw(5, GEOMETRY, measure=True)
        wanted = [float(bits) for bits in prior(batch.tokens, batch.text, choices).bits_per_token.values()]
        assert bits_per_token(prior, data, range(5), batch_size=2) == pytest.approx(wanted, rel=1e-5)
    for weight in prior.head.parameters():
        torch.nn.init.zeros_(weight)
    found = bits_per_token(prior, data, range(5), draws=30)
    # How many words of a level are hidden together with those of others is up to chance.
    assert found == pytest.approx([CONFIG.num_bits] * 3, rel=0.1 if kind == "masked" else 1e-6)


def test_a_run_may_begin_with_the_weights_of_another(shards: Path, tmp_path: Path) -> None:
    first = run_prior(recipe(steps=2), shards, tmp_path / "first")
    config = recipe(text_dropout=0.3).config(HEADER)
    prior = begin(config, load_prior(first))
    assert prior.config == config
    for name, value in load_prior(first).state_dict().items():
        assert torch.equal(value, prior.state_dict()[name])
    begin(recipe(levels=2).config(HEADER), load_prior(first))
    with pytest.raises(ValueError, match=r"to start from has levels = 2, the recipe and shards say 0"):
        begin(recipe(order="cell").config(HEADER), build_prior(recipe(order="cell", levels=2).config(HEADER)))
    with pytest.raises(ValueError, match=r"to start from has num_layers = 1, the recipe and shards say 2"):
        run_prior(recipe(num_layers=2), shards, tmp_path / "second", init=first)
    save_prior(tiny_prior("ar", tokenizer=ModelId(name="other", fingerprint="f" * 16)), tmp_path / "other")
    with pytest.raises(ValueError, match=r"holds words of tiny .*, not of other"):
        run_prior(recipe(), shards, tmp_path / "second", init=tmp_path / "other")
    assert not (tmp_path / "second").exists()
    run_prior(recipe(steps=1), shards, tmp_path / "second", init=first)
    with torch.no_grad():
        prior.untold.add_(1)
    save_prior(prior, tmp_path / "changed")
    with pytest.raises(ValueError, match="this run was begun with init = "):
        run_prior(recipe(steps=2), shards, tmp_path / "second", init=tmp_path / "changed", resume=True)


def test_refused_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="all 40 clips are held out"):
        run_prior(recipe(held_out=0.999999), shards, out)
    with pytest.raises(ValueError, match="chunk_bits must be at most num_bits = 6"):
        run_prior(recipe(chunk_bits=7), shards, out)
    with pytest.raises(ValueError, match="no folder of token shards"):
        run_prior(recipe(), tmp_path, out)
    assert not out.exists()
    with pytest.raises(ValueError, match=r"held_out is a share in \[0, 1\)"):
        recipe(held_out=1.0)
    with pytest.raises(ValueError, match="one loss"):
        replace(recipe(), train=replace(recipe().train, losses=LossWeights(l1=2.0)))


def test_other_shards_do_not_go_on_with_a_run(shards: Path, tmp_path: Path) -> None:
    run_prior(recipe(steps=1), shards, tmp_path / "run")
    with pytest.raises(ValueError, match="already holds checkpoints"):
        run_prior(recipe(steps=1), shards, tmp_path / "run")
    other = write_toy(tmp_path / "other", header=replace(HEADER, settings="other"))
    with pytest.raises(ValueError, match=r"begun with shards\.settings = '', not 'other'"):
        run_prior(recipe(steps=2), other, tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", [name for name in PRIORS if name.startswith("prior-")])
def test_recipes_fit_nano(name: str) -> None:
    strides = ((2, 16, 16), (4, 8, 8), (4, 8, 8), (4, 8, 8))
    geometry = Geometry(frames=17, height=64, width=64, strides=strides)
    header = ShardHeader(model=TOKENIZER, num_bits=16, geometry=geometry, text_dim=384)
    with torch.device("cpu" if name == "prior-llm" else "meta"):
        prior = build_prior(PRIORS[name]().config(header))
    assert PRIORS[name]().name == name
    assert sum(weight.numel() for weight in prior.parameters()) <= 6_000_000


class TestCommand:
    @pytest.fixture
    def pyratok(self) -> Callable[..., int]:
        return lambda *arguments: app.run([str(argument) for argument in arguments])

    def settings(self, **changes: Any) -> list[str]:
        """Options for the shape and settings of the toy recipe."""
        fields = to_dict(recipe(steps=2, **changes))
        train = {
            f"train.{name}": fields["train"][name] for name in ("steps", "batch_size", "workers", "compile", "bf16")
        }
        shape = {name: fields[name] for name in ("hidden_size", "num_layers", "num_heads", "chunk_bits", "held_out")}
        return [part for name, value in (train | shape).items() for part in ("--set", f"{name}={json.dumps(value)}")]

    def test_trains_and_goes_on(
        self, pyratok: Callable[..., int], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["train", "prior-masked", "--data", shards, "--out", tmp_path / "run", *self.settings()]
        assert pyratok(*command) == 0
        printed = capsys.readouterr().out
        assert all(words in printed for words in ("held out, at most", "unigram", "level 3"))
        assert load_prior(tmp_path / "run/prior").config.kind == "masked"
        assert pyratok(*command) == 2
        assert pyratok(*command, "--resume", "--set", "train.steps=3") == 0
        assert json.loads((tmp_path / "run/prior.json").read_text())["steps"] == 3

    def test_says_what_it_would_take(self, pyratok: Callable[..., int], shards: Path, tmp_path: Path) -> None:
        outline = tmp_path / "outline.json"
        out = ["--out", tmp_path / "run"]
        assert (
            pyratok("train", "prior-ar", "--dry-run", "--data", shards, *self.settings(), *out, "--json", outline) == 0
        )
        found = json.loads(outline.read_text())
        assert (found["steps"], found["tokens"]) == (2, 58)
        assert 12 * found["parameters"] < found["standing_memory"] < 20 * found["parameters"]
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "one folder of token shards: --data DIR once, got 0"),
            (["--data", "SHARDS"], "--out is missing"),
            (["--data", "SHARDS", "--stage", "reading"], "has no stages"),
            (["--data", "SHARDS", "--set", "hidden=3"], "has no field 'hidden'"),
            (["--data", "SHARDS", "--out", "OUT", "--init", "SHARDS"], "cannot be read as JSON"),
        ],
    )
    def test_refused(
        self,
        pyratok: Callable[..., int],
        options: list[str],
        message: str,
        shards: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        places = {"SHARDS": str(shards), "OUT": str(tmp_path / "run")}
        assert pyratok("train", "prior-scale", *(places.get(option, option) for option in options)) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_is_named_where_a_recipe_is_not_known(
        self, pyratok: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert pyratok("train", "prior-er", "--data", tmp_path, "--out", tmp_path / "run") == 2
        assert "did you mean 'prior-ar'?" in capsys.readouterr().err
