"""Priors over the tokens of pyratok-nano, 3 to 4 million parameters each, for clips such as 17x64x64: 1,104 tokens.

Their settings are those of the prior that ships, alike for all kinds.
"""

from __future__ import annotations

from dataclasses import replace

from pyratok.train.optim import OptimConfig
from pyratok.train.priors import PriorRecipe
from pyratok.train.trainer import TrainConfig

# What a step is made of depends on chance, which a compiled graph would be made anew for.
TRAIN = TrainConfig(
    steps=5_000, batch_size=8, compile=False, optim=OptimConfig(lr=2e-3, decay_share=0.4, ema_decay=0.99)
)

FULL_SCALE = OptimConfig(name="adamw", lr=1e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup=2_000, decay_share=1.0)


def prior_ar() -> PriorRecipe:
    """Cell after cell, all levels of a latent step before the next: frames are final while later ones are sampled."""
    return PriorRecipe(name="prior-ar", kind="ar", order="cell", train=TRAIN)


def prior_scale() -> PriorRecipe:
    """Level after level, the words of a level in a few steps."""
    return PriorRecipe(name="prior-scale", kind="scale", train=TRAIN)


def prior_llm() -> PriorRecipe:
    """As ``prior-ar`` by a small Qwen2, or by the model that ``language_model`` names, level after level."""
    return PriorRecipe(name="prior-llm", kind="llm", train=TRAIN)


def t2v_llm() -> PriorRecipe:
    """Text to video by a pretrained language model under adapters: PyraTok, App. B.4. Give ``language_model``, such as
    Qwen2.5-VL-3B-Instruct; the paper does not tell steps, batch and rate, which are ours."""
    return PriorRecipe(
        name="t2v-llm",
        kind="llm",
        lora_rank=16,
        train=replace(TRAIN, steps=100_000, batch_size=64, optim=FULL_SCALE),
    )


def ucf101_ar() -> PriorRecipe:
    """Class to video over some 1,024 tokens of 16x128x128 (PyraTok, Table 8), captions being class names. The shape is
    that of a GPT-2 large; the paper tells none."""
    return PriorRecipe(
        name="ucf101-ar",
        kind="ar",
        hidden_size=1280,
        num_layers=36,
        num_heads=20,
        train=replace(TRAIN, steps=300_000, batch_size=64, optim=FULL_SCALE),
    )


def openvid_finetune() -> PriorRecipe:
    """10,000 clips (PyraTok, sec. 4, after a tokenizer is swapped): give the prior to go on from as ``--init``."""
    return PriorRecipe(
        name="openvid-finetune",
        kind="ar",
        hidden_size=1280,
        num_layers=36,
        num_heads=20,
        train=replace(TRAIN, steps=5_000, batch_size=64, optim=replace(FULL_SCALE, lr=3e-5)),
    )


def prior_masked() -> PriorRecipe:
    """Words of all levels in any order, in a few steps."""
    return PriorRecipe(name="prior-masked", kind="masked", train=TRAIN)
