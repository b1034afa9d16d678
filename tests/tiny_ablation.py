"""The ablations with tiny models, tiny clips, and media that are drawn on the spot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from fakes import moving_video
from pyratok.config import PyraTokConfig, TextHeadConfig
from pyratok.data.captioned import MAX_OBJECTS, CaptionedBatch
from pyratok.data.video_io import save_video
from pyratok.eval.ablation import AblationProtocol
from pyratok.eval.language import LanguageProtocol
from pyratok.eval.reconstruction import EvalProtocol
from pyratok.losses.perceptual import PerceptualLoss
from pyratok.recipes import ablations
from pyratok.train.recipe import Recipe
from tiny import LAPQ, VAE, tiny_pyratok
from tiny_training import settings

FRAMES, SIZE = 5, 32
NOUNS = "disc star cross square ring moon kite bell drum leaf boat lamp shoe cup tent".split()
PROTOCOL = AblationProtocol(
    reconstruction=EvalProtocol(size=SIZE, crop=SIZE, frames=FRAMES),
    language=LanguageProtocol(clips=2, ways=2, frames=FRAMES, size=SIZE, batch_size=2),
)


def tiny_base(steps: int = 2) -> Recipe:
    """The base of all variants with every grid, level and term of its own, and few channels."""
    recipe = ablations.base()
    lapq = replace(recipe.model.lapq, width=LAPQ.width, num_heads=LAPQ.num_heads, text_dim=LAPQ.text_dim)
    head = TextHeadConfig(width=16, num_blocks=1, kernel=3)
    assert recipe.language.lm is not None
    lm = replace(
        recipe.language.lm, hidden_size=16, num_layers=1, num_heads=2, text_dim=LAPQ.text_dim, max_tokens_per_level=8
    )
    return replace(
        recipe,
        model=PyraTokConfig(name="tiny", vae=VAE, lapq=lapq, text_head=head),
        language=replace(recipe.language, lm=lm),
        train=settings(steps=steps, frames=FRAMES, size=SIZE, losses=recipe.train.losses),
    )


def tiny_reading() -> Recipe:
    """The head's reading of finished tokens, of few clips and in few steps."""
    recipe = ablations.reading()
    train = settings(steps=2, frames=FRAMES, size=SIZE, losses=recipe.train.losses)
    return replace(recipe, model=tiny_base().model, train=train, stored=4)


def tiny_start(folder: Path) -> Path:
    """A model whose VAE all variants start from."""
    tiny_pyratok().save_pretrained(folder)
    return folder


def tiny_perceptual() -> PerceptualLoss:
    """A distance between colours, without weights of its own."""
    return PerceptualLoss("colour", [nn.Identity()], [torch.ones(3)])


def tiny_media(folder: Path) -> Path:
    """Two videos, a photograph, and a sprite for each noun, captioned."""
    folder.mkdir()
    for index in range(2):
        save_video(moving_video(), folder / f"clip{index}.mp4")
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / "photo.jpg"), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for noun in NOUNS:
        cv2.imwrite(str(folder / f"{noun}.png"), np.full((20, 20, 4), 255, np.uint8))
        (folder / f"{noun}.txt").write_text(noun)
    return folder


def tiny_batch() -> CaptionedBatch:
    """Two captioned clips, one object in the left half of each."""
    masks = torch.zeros(2, MAX_OBJECTS, 2, 4, 4)
    masks[:, 0, :, :, :2] = 1
    videos = torch.randint(0, 256, (2, 3, FRAMES, SIZE, SIZE), dtype=torch.uint8)
    nouns = (("disc", "", ""), ("star", "", ""))
    return CaptionedBatch(videos=videos, captions=("a red disc", "a star"), nouns=nouns, masks=masks)
