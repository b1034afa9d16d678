"""What each process of ``tests/train/test_distributed.py`` runs: ``accelerate launch ... tiny_ranks.py OUT``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyratok.config import TextHeadConfig
from pyratok.data.captioned import MAX_OBJECTS, CaptionedBatch, CaptionedItem, collate
from pyratok.data.datasets import MixedClips
from pyratok.data.masking import MaskingConfig
from pyratok.model.alignment import TokenLM, TokenLMConfig
from pyratok.nn.lora import LoRAConfig, inject
from pyratok.train.language import LanguageConfig, LanguageObjective, LanguageParts, frozen_copy
from pyratok.train.objectives import LossWeights, Named, TokenizerObjective
from pyratok.train.trainer import NonFiniteLossError, TrainConfig, train
from tiny import CONFIG, LAPQ, StubText, tiny_pyratok
from tiny_training import OPTIM, clips, settings, tiny_objective

STEPS, BATCH, WORLD = 20, 4, 2
SLOWLY = replace(OPTIM, lr=1e-3)
"""Large steps would carry rounding across the signs of the tokens."""
CAPTIONS = ("a red disc", "a star", "", "a blue square", "a star")
LM = TokenLMConfig(num_levels=LAPQ.num_levels, text_dim=LAPQ.text_dim, hidden_size=16, num_layers=1, num_heads=2)


def config(**changes: Any) -> TrainConfig:
    return settings(**{"steps": STEPS, "batch_size": BATCH, "optim": SLOWLY, **changes})


class Captioned:
    """Noise with a caption and one object, 5x32x32."""

    def __len__(self) -> int:
        return STEPS * BATCH

    def __getitem__(self, index: int) -> CaptionedItem:
        generator = torch.Generator().manual_seed(index)
        caption = CAPTIONS[index % len(CAPTIONS)]
        masks = torch.zeros(MAX_OBJECTS, 2, 4, 4)
        masks[0, :, :, : 1 + index % 3] = 1
        return CaptionedItem(
            video=torch.randint(0, 256, (3, 5, 32, 32), generator=generator, dtype=torch.uint8),
            caption=caption,
            nouns=(caption.rpartition(" ")[2], *[""] * (MAX_OBJECTS - 1)),
            masks=masks,
        )

    def collate(self, items: Sequence[CaptionedItem]) -> CaptionedBatch:
        return collate(items)


class Alarm(MixedClips):
    """Sends ``number`` to the process that comes to clip ``index``."""

    def __init__(self, plain: MixedClips, index: int, number: signal.Signals) -> None:
        self.plain, self.index, self.number = plain, index, number
        self.length = len(plain)

    def __getitem__(self, index: int) -> Tensor:
        if index == self.index:
            os.kill(os.getpid(), self.number)
        return self.plain[index]


class White(Alarm):
    """Clip ``index`` is white."""

    def __getitem__(self, index: int) -> Tensor:
        clip = self.plain[index]
        return torch.full_like(clip, 255) if index == self.index else clip


class FearsWhite(TokenizerObjective):
    """Not a number where a clip is white."""

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        terms, metrics = super().terms(video, **choices)
        terms["l1"] = terms["l1"] * (torch.nan if bool((video == 1).flatten(1).all(1).any()) else 1.0)
        return terms, metrics


def language_objective() -> LanguageObjective:
    """Every term that there is, and every random choice."""
    weights = LossWeights(
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
    lapq = replace(CONFIG.lapq, level_dropout=0.5)
    model = tiny_pyratok(config=replace(CONFIG, lapq=lapq, text_head=TextHeadConfig(width=16, num_blocks=1, kernel=3)))
    reference = frozen_copy(model.vae)
    inject(model.vae.encoder, LoRAConfig(rank=2), ("conv_in", "down_blocks", "mid_block"))
    masking = MaskingConfig(temporal=0.3, spatial=0.5, shuffle=0.5, patch=8)
    language = LanguageConfig(lm=LM, caption_dropout=0.5, masking=masking, vocabulary=3, background=0.2)
    objective = LanguageObjective(LanguageParts(model, TokenLM(LM)), weights, language, StubText(), reference)
    objective.texts.learn_names(["disc", "star", "square", "moon", "tree"])
    return objective


def train_tokenizer(out: Path, data: MixedClips | None = None, **changes: Any) -> None:
    train(tiny_objective(), data or clips(STEPS * BATCH), config(**changes), out)


def train_language(out: Path) -> None:
    # With some seeds a value lies so near to zero that rounding decides its sign, and what follows differs.
    train(language_objective(), Captioned(), config(seed=2), out)


def first_clip_of_rank_1(step: int) -> int:
    return step * BATCH + BATCH // WORLD


def main() -> None:
    out, rank = Path(sys.argv[1]), os.environ["RANK"]
    torch.set_num_threads(1)
    train_tokenizer(out / "tokenizer")
    train_language(out / "language")
    train_tokenizer(out / "accumulated", steps=4, accumulate=2)
    plain = clips(STEPS * BATCH)
    train_tokenizer(out / "stopped", Alarm(plain, first_clip_of_rank_1(3), signal.SIGTERM))
    try:
        white = White(plain, first_clip_of_rank_1(2), signal.SIGTERM)
        train(FearsWhite(tiny_objective().model, LossWeights()), white, config(), out / "exploded")
    except NonFiniteLossError as error:
        (out / f"exploded-{rank}.txt").write_text(str(error))
    try:
        train_tokenizer(out / "uneven", batch_size=3)
    except ValueError as error:
        (out / f"uneven-{rank}.txt").write_text(str(error))
    # The last thing that this process does.
    train_tokenizer(out / "killed", Alarm(plain, first_clip_of_rank_1(6), signal.SIGKILL))


if __name__ == "__main__":
    main()
