from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fakes import moving_video
from pyratok.config import TextHeadConfig
from pyratok.data.mixes import DataConfig
from pyratok.data.synthetic import SceneConfig
from pyratok.data.video_io import save_video
from pyratok.data.words import is_unseen
from pyratok.model.alignment import TokenLMConfig
from pyratok.model.pretrained import from_pretrained, read_config
from pyratok.model.pyratok import PyraTok
from pyratok.model.token_lm_files import load_token_lm
from pyratok.nn.lora import LoRAConfig
from pyratok.recipes.nano import nano
from pyratok.train.aligning import CaptionTable
from pyratok.train.assembly import require_quantizer
from pyratok.train.run import Recipe, build_objective, run
from tiny import CONFIG, LAPQ, StubText, random_video, tiny_pyratok
from tiny_training import settings

VAE_STAGE = Recipe(name="tiny-vae", stage="vae", model=CONFIG, train=settings(steps=2))
TOKENIZER_STAGE = Recipe(name="tiny", stage="tokenizer", model=CONFIG, train=settings(steps=2))


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A video, a photograph and a sprite."""
    folder = tmp_path / "media"
    folder.mkdir()
    save_video(moving_video(), folder / "clip.mp4")
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / "photo.jpg"), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "sprite.png"), rng.integers(0, 256, (20, 20, 4), dtype=np.uint8))
    return folder


def test_both_stages_from_media_to_a_model(media: Path, tmp_path: Path) -> None:
    vae = run(VAE_STAGE, [media], tmp_path / "a")
    model = run(TOKENIZER_STAGE, [media], tmp_path / "b", init=vae)
    assert model == tmp_path / "b" / "model"
    first, last, video = from_pretrained(vae), from_pretrained(model), random_video()
    assert first.model_id.name == last.model_id.name == "tiny"
    assert first.model_id != last.model_id
    assert last.decode(last.encode(video)).shape == video.shape
    assert {path.name for path in (tmp_path / "b").iterdir()} >= {
        "recipe.json",
        "train.json",
        "log.jsonl",
        "checkpoints",
    }
    # The head of the continuous latent is off the tokens' path and stays as the first stage left it.
    name = "vae.quant_conv.weight"
    assert torch.equal(first.state_dict()[name], last.state_dict()[name])


def test_a_run_is_refused_before_anything_is_touched(media: Path, tmp_path: Path) -> None:
    run(VAE_STAGE, [media], tmp_path / "a")
    recipe = (tmp_path / "a" / "recipe.json").read_text()
    with pytest.raises(ValueError, match="already holds checkpoints"):
        run(replace(VAE_STAGE, name="another"), [tmp_path / "nowhere"], tmp_path / "a")
    assert (tmp_path / "a" / "recipe.json").read_text() == recipe


def test_another_run_is_refused_before_anything_is_touched(media: Path, tmp_path: Path) -> None:
    starts = [tmp_path / "one", tmp_path / "two"]
    for seed, start in enumerate(starts):
        tiny_pyratok(seed).save_pretrained(start)
    out = tmp_path / "a"
    run(TOKENIZER_STAGE, [media], out, init=starts[0])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    lora = replace(TOKENIZER_STAGE, lora=LoRAConfig(rank=2))
    for recipe, init, field in (
        (lora, starts[0], "lora.rank = 16, not 2"),
        (TOKENIZER_STAGE, starts[1], "init = '"),
    ):
        with pytest.raises(ValueError, match=f"this run was begun with {field}"):
            run(recipe, [tmp_path / "nowhere"], out, init=init, resume=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    longer = replace(TOKENIZER_STAGE, train=replace(TOKENIZER_STAGE.train, steps=3))
    run(longer, [media], out, init=starts[0], resume=True)
    assert len((out / "log.jsonl").read_text().splitlines()) == 3


def test_data_that_cannot_be_read_leave_no_folder(tmp_path: Path) -> None:
    for name in ("clip.mp4", "photo.txt"):
        (tmp_path / "media").mkdir(exist_ok=True)
        (tmp_path / "media" / name).write_text("neither a film nor a picture")
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        run(VAE_STAGE, [tmp_path / "media"], tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["media"]


@pytest.mark.parametrize(
    "fields",
    [
        {"footage": -1.0},
        {"photos": math.nan},
        {"scenes": math.inf},
        {"footage_zoom": (0.0, 1.0)},
        {"photo_zoom": (2.0, 1.0)},
        {"photo_zoom": (1.0, math.inf)},
        {"scene": SceneConfig(photo_zoom=(-1.0, 1.0))},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_mix_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=" must be "):
        DataConfig(**fields)


def test_tokenizer_stage_needs_a_vae_that_fits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="starts from a trained VAE; give its model folder with --init"):
        build_objective(TOKENIZER_STAGE, None)
    other = replace(CONFIG, vae=replace(CONFIG.vae, base_dim=4))
    PyraTok(other).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="its VAE is not the one this recipe trains"):
        build_objective(TOKENIZER_STAGE, tmp_path / "other")


@pytest.mark.parametrize("decoder", ["frozen", "lora", "full"])
@pytest.mark.parametrize("encoder", ["frozen", "lora", "full"])
def test_parts_that_learn(tmp_path: Path, decoder: str, encoder: str) -> None:
    PyraTok(CONFIG).save_pretrained(tmp_path / "start")
    recipe = replace(TOKENIZER_STAGE, encoder=encoder, decoder=decoder)  # type: ignore[arg-type]
    model = build_objective(recipe, tmp_path / "start").model
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    for half, how in (("vae.encoder", encoder), (("vae.decoder", "vae.post_quant_conv"), decoder)):
        taught = {name for name in learning if name.startswith(half)}
        assert bool(taught) == (how != "frozen")
        assert any(name.endswith((".up", ".down")) for name in taught) == (how == "lora")
    assert not [name for name in learning if name.startswith(("vae.quant_conv", "vae.encoder.conv_out"))]
    quantizer = {name for name, _ in model.named_parameters() if name.startswith("lapq.")}
    text = {name for name in quantizer if ".text." in name}
    assert text
    assert quantizer & learning == quantizer - text
    # Whatever learns, the start is the model one starts from.
    with torch.inference_mode():
        start, video = from_pretrained(tmp_path / "start"), random_video()
        assert isinstance(start, PyraTok)
        taps = zip(model.vae.encode_taps(video), start.vae.encode_taps(video), strict=True)  # type: ignore[operator,union-attr]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in taps)


def test_a_frozen_quantizer_keeps_its_words(tmp_path: Path) -> None:
    PyraTok(CONFIG).save_pretrained(tmp_path / "start")
    recipe = replace(TOKENIZER_STAGE, encoder="frozen", quantizer="frozen")
    model = build_objective(recipe, tmp_path / "start").model
    learning = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"decoder", "post_quant_conv"}


def test_a_frozen_quantizer_is_that_of_the_start(tmp_path: Path) -> None:
    """Another one would stay as it was drawn; and tokens that stay as they are keep their whole fingerprint."""
    frozen = replace(TOKENIZER_STAGE, encoder="frozen", quantizer="frozen")
    with pytest.raises(ValueError, match="trained before; give its model folder with --init"):
        require_quantizer(frozen, None)
    strides = ((2, 16, 16), *LAPQ.strides[1:])
    other = replace(CONFIG, lapq=replace(LAPQ, strides=strides, level_dropout=0.5))
    PyraTok(other).save_pretrained(tmp_path / "other")
    wanted = r"it needs --set model\.lapq\.strides=\[\[2,16,16\],.*\]\]$"
    with pytest.raises(ValueError, match=wanted):
        build_objective(frozen, tmp_path / "other")
    same = replace(frozen, model=replace(CONFIG, lapq=replace(LAPQ, strides=strides)))
    build_objective(same, tmp_path / "other")
    with pytest.raises(ValueError, match=r"it needs --set model\.lapq\.level_dropout=0\.5$"):
        build_objective(replace(same, decoder="frozen"), tmp_path / "other")


def finished(name: str) -> Recipe:
    """One of nano's stages whose tokens stay as they are, on a tiny model."""
    (stage,) = (stage for stage in nano().stages if stage.name == name)
    lm = TokenLMConfig(num_levels=4, text_dim=LAPQ.text_dim, hidden_size=16, num_layers=1, num_heads=2)
    return replace(
        stage,
        model=replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=1, kernel=3)),
        data=replace(stage.data, exclude=()),
        language=replace(stage.language, lm=lm if stage.language.lm else None, vocabulary=2),
        stored=3,
        train=settings(steps=2, frames=9, size=32, losses=stage.train.losses),
    )


def test_stages_with_finished_tokens_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("pyratok.train.assembly.MiniLM", StubText)
    told: list[Sequence[str]] = []
    learn_names = CaptionTable.learn_names

    def overheard(self: CaptionTable, nouns: Sequence[str]) -> None:
        told.append(nouns)
        learn_names(self, nouns)

    monkeypatch.setattr(CaptionTable, "learn_names", overheard)
    seen, unseen, sprites = {"tiger", "house", "kite", "boat"}, {"robot", "tree"}, tmp_path / "sprites"
    assert {noun for noun in seen | unseen if is_unseen(f"A {noun}")} == unseen
    sprites.mkdir()
    for noun in seen | unseen:
        cv2.imwrite(str(sprites / f"{noun}.png"), np.full((20, 20, 4), len(noun) * 25, dtype=np.uint8))
        (sprites / f"{noun}.txt").write_text(f"A {noun}")
    recipe = finished("reading")
    start, video = tiny_pyratok(config=recipe.model), random_video(frames=9)
    start.save_pretrained(tmp_path / "start")

    objective = build_objective(recipe, tmp_path / "start")
    learning = [name.split(".") for name, p in objective.model.named_parameters() if p.requires_grad]
    assert {part[1] if part[0] == "tokenizer" else part[0] for part in learning} == {"text_head"}
    assert not list(objective.model.tokenizer.buffers())  # type: ignore[operator,union-attr]

    cache = tmp_path / "frames"
    model = run(recipe, [sprites], tmp_path / "out", init=tmp_path / "start", cache=cache)
    before, after = (read_config(folder)[1] for folder in (tmp_path / "start", model))
    assert before["fingerprint"] == after["fingerprint"]
    assert before["digest"] != after["digest"]
    loaded = from_pretrained(model)
    assert all(torch.equal(*pair) for pair in zip(start.encode(video).levels, loaded.encode(video).levels, strict=True))
    assert [set(nouns) for nouns in told] == [seen]

    last = run(finished("predicting"), [sprites], tmp_path / "last", init=model, cache=cache)
    assert read_config(last)[1]["digest"] == after["digest"]
    load_token_lm(tmp_path / "last" / "lm", loaded.model_id)
    assert len(list((tmp_path / "tokens").glob("*/*"))) == 1


def test_other_grids_keep_what_fits_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = PyraTok(CONFIG)
    start.save_pretrained(tmp_path / "start")
    strides = ((2, 16, 16), *CONFIG.lapq.strides[1:])
    recipe = replace(TOKENIZER_STAGE, model=replace(CONFIG, lapq=replace(CONFIG.lapq, strides=strides)))
    torch.manual_seed(1)
    own = build_objective(recipe, tmp_path / "start").model.lapq.state_dict()  # type: ignore[operator,union-attr]
    before = start.lapq.state_dict()
    anew = {name for name, value in own.items() if name not in before or not before[name].equal(value)}
    assert anew
    assert all("levels.0.lateral" in name or "levels.1.resample" in name for name in anew)


def test_a_start_that_was_not_given_again_is_missed(tmp_path: Path) -> None:
    tiny_pyratok().save_pretrained(tmp_path)
    assert TOKENIZER_STAGE.origin(None)["init"] is None
    assert TOKENIZER_STAGE.origin(tmp_path)["init"]


def test_choices_are_checked() -> None:
    with pytest.raises(ValueError, match=r"need a text head; set model\.text_head=\{\}"):
        replace(finished("reading"), model=CONFIG)
    with pytest.raises(ValueError, match="are stored as tokens in the stages language and answering alone"):
        replace(finished("reading"), decoder="full")
    with pytest.raises(ValueError, match="quantizer must be 'frozen' or 'full', got 'half'"):
        replace(VAE_STAGE, quantizer="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decoder 'partly' is not one of"):
        replace(VAE_STAGE, decoder="partly")  # type: ignore[arg-type]
