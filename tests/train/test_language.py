"""The objective of the stages with language: which term sees what, and whom it teaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyratok.config import TextHeadConfig
from pyratok.data.captioned import MAX_OBJECTS, CaptionedBatch
from pyratok.data.masking import MaskingConfig
from pyratok.model.alignment import TokenLM, TokenLMConfig
from pyratok.nn.lora import LoRAConfig, inject
from pyratok.quantization.bits import signs_to_ids
from pyratok.train.aligning import CaptionTable
from pyratok.train.language import LanguageConfig, LanguageObjective, LanguageParts, frozen_copy
from pyratok.train.objectives import LossWeights
from pyratok.types import LossTerms, TextEmbedding
from tiny import CONFIG, LAPQ, StubText, tiny_pyratok

EVERY_TERM = LossWeights(
    sample_entropy=0.01,
    hierarchical=0.01,
    text_tokens=0.1,
    text_words=0.1,
    contrastive=0.1,
    grounding=0.1,
    naming=0.1,
    autoregressive=0.01,
    drift=0.1,
    retention=0.1,
)
ALIGNMENT = ("text_tokens", "text_words", "contrastive", "grounding", "naming")
LM = TokenLMConfig(num_levels=LAPQ.num_levels, text_dim=LAPQ.text_dim, hidden_size=16, num_layers=1, num_heads=2)


def batch(captions: tuple[str, ...] = ("a red disc", "a star")) -> CaptionedBatch:
    """Two clips of 5x32x32; one object in the left half of each."""
    masks = torch.zeros(len(captions), MAX_OBJECTS, 2, 4, 4)
    masks[:, 0, :, :, :2] = 1
    nouns = tuple((caption.rpartition(" ")[2], "", "") for caption in captions)
    generator = torch.Generator().manual_seed(0)
    videos = torch.randint(0, 256, (len(captions), 3, 5, 32, 32), generator=generator, dtype=torch.uint8)
    return CaptionedBatch(videos=videos, captions=captions, nouns=nouns, masks=masks)


def objective(weights: LossWeights = EVERY_TERM, **language: Any) -> LanguageObjective:
    model = tiny_pyratok(config=replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=1, kernel=3)))
    reference = frozen_copy(model.vae)
    inject(model.vae.encoder, LoRAConfig(rank=2), ("conv_in", "down_blocks", "mid_block"))
    config = LanguageConfig(**{"lm": LM, "caption_dropout": 1.0, **language})
    return LanguageObjective(
        LanguageParts(model, TokenLM(LM) if config.lm else None), weights, config, StubText(), reference
    )


def step(target: LanguageObjective, clips: CaptionedBatch, seed: int = 0) -> LossTerms:
    torch.manual_seed(seed)
    video, choices = target.prepare(clips)
    losses: LossTerms = target(video, **choices)
    return losses


def test_every_term_is_there_and_teaches_every_part() -> None:
    target = objective(caption_dropout=0.5)
    losses = step(target, batch(), seed=1)
    assert losses.terms.keys() >= {*ALIGNMENT, "l1", "hierarchical", "autoregressive", "drift", "retention"}
    assert all(bool(value.isfinite()) for value in losses.terms.values())
    assert {f"lm_bits_{level}" for level in range(1, 5)} <= losses.metrics.keys()
    losses.total.backward()
    learning = [name for name, p in target.model.named_parameters() if p.requires_grad]
    untaught = [name for name in learning if target.model.get_parameter(name).grad is None]
    assert not [
        name for name in untaught if "quant_conv" not in name and "conv_out" not in name and "norm_out" not in name
    ]
    for part in ("tokenizer.text_head.", "tokenizer.lapq.levels.0.project", "lm.word"):
        assert any(name.startswith(part) for name in learning)


def test_without_captions_the_tokens_are_those_of_encode() -> None:
    """Caption dropout of 1: training sees the words that a user gets."""
    target = objective()
    clips = batch()
    torch.manual_seed(0)
    video, choices = target.prepare(clips)
    assert not choices["guided"].any()
    model = target.model.tokenizer.eval()
    words = model.encode(video)
    with torch.no_grad():
        taps = model.vae.encode_taps(choices["shown"])
        assert torch.equal(choices["shown"], video)
        plain = model.lapq.quantize(taps)
    assert all(torch.equal(signs_to_ids(o.bits), ids) for o, ids in zip(plain, words.levels, strict=True))


@pytest.mark.parametrize("captions", [("a red disc", "a star"), ("", "  ")])
def test_alignment_looks_only_at_tokens_that_know_no_caption(captions: tuple[str, ...]) -> None:
    """Clips guided by their caption, and clips without one, teach the alignment terms nothing."""
    clips = batch(captions)
    clips = replace(clips, nouns=tuple(("", "", "") for _ in captions)) if not captions[0] else clips
    losses = step(objective(caption_dropout=0.0), clips)
    assert all(losses.terms[name].item() == 0.0 for name in ALIGNMENT)


def test_names_are_told_from_a_share_of_all_names() -> None:
    only = LossWeights(l1=0, ssim=0, commitment=0, batch_entropy=0, grounding=1.0, naming=1.0)
    nouns = [f"thing {number}" for number in range(9)]
    alone, told = objective(only), objective(only, vocabulary=5)
    told.texts.learn_names(nouns)
    alone.texts.learn_names(nouns)  # asked for none
    _, choices = told.prepare(batch())
    assert choices["vocabulary"].shape == (5, LAPQ.text_dim)
    assert not torch.equal(choices["vocabulary"], told.prepare(batch())[1]["vocabulary"])
    before, after = step(alone, batch()).terms, step(told, batch()).terms
    assert all(bool(after[name] > before[name]) for name in ("grounding", "naming"))


def test_alignment_teaches_the_quantizer() -> None:
    only = LossWeights(l1=0, ssim=0, commitment=0, batch_entropy=0, **dict.fromkeys(ALIGNMENT, 1.0))
    target = objective(only)
    losses = step(target, batch())
    assert losses.terms.keys() == set(ALIGNMENT)  # the decoder did not run
    losses.total.backward()
    for level in target.model.tokenizer.lapq.levels:
        assert float(level.project.weight.grad.abs().sum()) > 0  # type: ignore[operator,union-attr]


def test_prediction_teaches_the_quantizer_and_knows_the_caption() -> None:
    only = LossWeights(l1=0, ssim=0, commitment=0, batch_entropy=0, autoregressive=1.0)
    target = objective(only)
    losses = step(target, batch())
    losses.total.backward()
    project = target.model.tokenizer.lapq.levels[0].project
    assert float(project.weight.grad.abs().sum()) > 0  # type: ignore[operator,union-attr]
    assert target.model.lm is not None
    assert float(target.model.lm.caption[1].weight.grad.abs().sum()) > 0  # type: ignore[operator,union-attr]


def test_drift_is_zero_until_the_adapters_move() -> None:
    target = objective()
    before = step(target, batch())
    assert float(before.terms["drift"]) == pytest.approx(0, abs=1e-6)
    assert float(before.terms["retention"]) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for name, parameter in target.model.named_parameters():
            if name.endswith(".up"):
                parameter += 0.05
    after = step(target, batch())
    assert float(after.terms["drift"]) > 1e-4
    assert float(after.terms["retention"]) > 1e-5


def test_what_is_masked_is_still_the_target() -> None:
    target = objective(masking=MaskingConfig(temporal=0.4, spatial=0.5, patch=8))
    clips = batch()
    torch.manual_seed(0)
    video, choices = target.prepare(clips)
    assert torch.equal(video, target.prepare(clips)[0])
    hidden = choices["shown"] != video
    assert 0.3 < float(hidden.float().mean()) < 0.9
    assert bool((choices["shown"][hidden] == 0).all())


def test_captions_are_cut_and_padded_to_one_length() -> None:
    table = CaptionTable(StubText(), 6)
    text = table.captions(["abc", "abcdefghij"])
    assert text.tokens.shape == (2, 6, LAPQ.text_dim)
    assert text.mask.tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    names: Tensor = table.names(["dog", "", "dog"])
    assert torch.equal(names[0], names[2])


def test_names_wait_where_the_clips_do() -> None:
    """Names of objects in general are told before the encoder moves to the device of the training."""

    class Elsewhere(Tensor):
        """Stands for a tensor on another device."""

        def cpu(self, *_: Any) -> Tensor:
            return self.as_subclass(Tensor)

    class Moved(StubText):
        def encode(self, texts: Sequence[str]) -> TextEmbedding:
            text = super().encode(texts)
            return replace(text, pooled=text.pooled.as_subclass(Elsewhere))

    assert type(CaptionTable(Moved(), 6).names(["dog", "cat"])) is Tensor


def test_no_choice_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="vocabulary must be a number of names, 0 or more, got -1"):
        LanguageConfig(vocabulary=-1)
    with pytest.raises(ValueError, match=r"background must be a cosine in \[-1, 1\], or null for none, got nan"):
        LanguageConfig(background=float("nan"))


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"caption_dropout is a share in \[0, 1\], got 2"):
        LanguageConfig(caption_dropout=2)
