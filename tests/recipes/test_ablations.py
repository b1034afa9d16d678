"""Every variant is what it says, can be trained, and costs what the others cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyratok.model.pretrained import from_pretrained
from pyratok.recipes import ablations
from pyratok.recipes.ablations import ABLATIONS, Variant, find_ablation, plan, with_changes
from pyratok.recipes.compare import build, num_parameters, save_start
from pyratok.train.baseline import BaselineObjective
from pyratok.train.objectives import LossWeights
from tiny import StubText
from tiny_ablation import tiny_base, tiny_batch, tiny_start

VARIANTS: dict[str, Variant] = {name: v for a in ABLATIONS.values() for name, v in a.variants.items()}
RATE_TOLERANCE = 0.03


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    return save_start(tiny_base(), tiny_start(folder / "init"), folder)[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns(name: str, start: Path) -> None:
    objective = build(plan(tiny_base(), VARIANTS[name]), start, StubText())
    learning = [p for p in objective.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-3)
    for seed in range(2):
        torch.manual_seed(seed)
        video, choices = objective.prepare(tiny_batch())
        losses = objective(video, **choices)
        assert all(bool(value.isfinite()) for value in losses.terms.values())
        losses.total.backward()
        assert all(bool(p.grad.isfinite().all()) for p in learning if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", VARIANTS)
def test_rates_are_equal(name: str) -> None:
    full = plan(ablations.base(), ablations.FULL).bits_per_pixel
    assert plan(ablations.base(), VARIANTS[name]).bits_per_pixel == pytest.approx(full, rel=RATE_TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_all_are_trained_whole_as_they_are_measured(name: str) -> None:
    assert plan(ablations.base(), VARIANTS[name]).recipe.model.lapq.level_dropout == 0


def test_codebooks_that_follow_count_as_parameters(start: Path) -> None:
    vq, gvq = (build(plan(tiny_base(), VARIANTS[name]), start, StubText()).model.tokenizer for name in ("vq", "gvq"))
    logits = sum(p.numel() for p in gvq.quantizer.logits.parameters())  # type: ignore[union-attr]
    assert num_parameters(vq) == num_parameters(gvq) - logits  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.changes])
def test_a_variant_is_another_model_than_the_full_one(name: str) -> None:
    assert plan(ablations.base(), VARIANTS[name]) != plan(ablations.base(), ablations.FULL)


def test_one_name_is_one_model() -> None:
    for ablation in ABLATIONS.values():
        assert ablation.reference in ablation.variants
        for name, variant in ablation.variants.items():
            other = VARIANTS[name]
            assert (variant.changes, variant.quantizer, variant.shared) == (
                other.changes,
                other.quantizer,
                other.shared,
            )


def test_a_loss_that_is_switched_off_is_gone(start: Path) -> None:
    for name, variant in ABLATIONS["losses"].variants.items():
        if name == "full":
            continue
        objective = build(plan(tiny_base(), variant), start, StubText())
        video, choices = objective.prepare(tiny_batch())
        gone = {path.removeprefix("train.losses.") for path in variant.changes}
        assert gone
        assert not gone & objective(video, **choices).terms.keys()


def test_heads_read_by_the_terms_that_a_variant_has() -> None:
    def read(name: str) -> LossWeights | None:
        found = plan(ablations.base(), VARIANTS[name], ablations.reading()).reading
        return found and found.train.losses

    whole = ablations.reading().train.losses
    assert read("full") == read("vq") == read("without-drift") == whole
    assert read("without-contrastive") == replace(whole, contrastive=0.0)
    assert read("without-grounding") == replace(whole, grounding=0.0, naming=0.0)
    assert read("without-alignment") is None


def test_nobody_begins_ahead(tmp_path: Path) -> None:
    """Also a start with the very quantizer of a variant gives its VAE alone."""
    init = tiny_start(tmp_path / "init")
    saved = from_pretrained(init)
    recipe = tiny_base()
    same = replace(recipe, model=replace(recipe.model, lapq=saved.config.lapq))  # type: ignore[union-attr]
    folder, digest = save_start(same, init, tmp_path)
    torch.manual_seed(1)
    fresh = build(plan(same, ablations.FULL), folder, StubText()).model.tokenizer
    assert len(digest) == 16
    assert torch.equal(fresh.vae.decoder.conv_in.weight, saved.vae.decoder.conv_in.weight)  # type: ignore[union-attr]
    name = "levels.0.project.weight"
    assert not torch.equal(fresh.lapq.state_dict()[name], saved.lapq.state_dict()[name])  # type: ignore[union-attr]


def test_another_vae_is_refused(tmp_path: Path) -> None:
    recipe = tiny_base()
    other = replace(recipe, model=replace(recipe.model, vae=replace(recipe.model.vae, base_dim=4)))
    with pytest.raises(ValueError, match="its VAE is not the one that the variants train"):
        save_start(other, tiny_start(tmp_path / "init"), tmp_path)


def test_a_drawn_codebook_cools_down(start: Path) -> None:
    objective = build(plan(tiny_base(steps=3), VARIANTS["gvq"]), start, StubText())
    assert isinstance(objective, BaselineObjective)
    found = []
    for _ in range(4):
        objective.prepare(tiny_batch())
        found.append(objective.model.tokenizer.quantizer.temperature)
    assert found == pytest.approx([1, 16 ** (-1 / 3), 16 ** (-2 / 3), 1 / 16])


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match="there is no ablation 'block'; did you mean 'blocks'"):
        find_ablation("block")
    with pytest.raises(ValueError, match="quantizers has no variant 'rwq'; did you mean 'rvq'"):
        find_ablation("quantizers").chosen(["rwq"])
    with pytest.raises(ValueError, match=r"no field 'train\.losses\.drifft'; did you mean 'drift'"):
        with_changes(ablations.base(), {"train.losses.drifft": 0.0})
    assert find_ablation("quantizers").chosen(["rvq", "full"]) == ("full", "rvq")
