"""The paper's own scale: a pretrained Wan 2.2 VAE, a large language model and DINOv3, in three stages.

Source: PyraTok (arXiv 2601.16210), sec. 3.2.3 and App. D. The models come from folders that the user names
(``sources``). What the paper leaves open is filled in here and told in docs/wan22.md; nothing of it is measured.
"""

from __future__ import annotations

from dataclasses import replace

from pyratok.config import LaPQConfig, PyraTokConfig, TextHeadConfig, WanVAEConfig
from pyratok.data.buckets import BucketConfig
from pyratok.data.masking import PAPER_MASKING, MaskingConfig
from pyratok.data.mixes import DataConfig
from pyratok.model.alignment import TokenLMConfig
from pyratok.train.language import LanguageConfig
from pyratok.train.objectives import LossWeights
from pyratok.train.optim import OptimConfig
from pyratok.train.recipe import Recipe
from pyratok.train.stages import Plan
from pyratok.train.trainer import TrainConfig

# The shape of the released VAE, for plans that name no folder yet; that of `sources.vae` replaces it.
VAE = WanVAEConfig(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    dim_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    temporal_downsample=(False, True, True),
    is_residual=True,
    patch_size=2,
)
# 1028 tokens for 17x128x128, near the 1024 of the paper's table 8: level 1 dense in time, the others on the latent.
LAPQ = LaPQConfig(
    taps=(1, 2, 3, 4),
    strides=((1, 64, 64), (4, 16, 16), (4, 16, 16), (4, 16, 16)),
    width=256,
    num_heads=8,
)
MODEL = PyraTokConfig(name="pyratok-wan22", vae=VAE, lapq=LAPQ)
DATA = DataConfig(footage=1.0, photos=0.0, sprites=0.0, scenes=0.0)
FRAMES = (17, 33, 49, 65, 81, 97)
BUCKETS = BucketConfig(sides=(512, 768, 1024, 1536, 2048), frames=FRAMES, multiple=64)
LM = TokenLMConfig(num_levels=4, text_dim=LAPQ.text_dim, max_tokens_per_level=1024)

RECONSTRUCTION, CODEBOOK, AUTOREGRESSIVE, DRIFT = 2.5, 2.5, 1.5, 0.6
"""Weights of the total loss; every term of a group has that of its group."""
SELF_SUPERVISED = LossWeights(
    l1=RECONSTRUCTION,
    ssim=RECONSTRUCTION,
    perceptual=RECONSTRUCTION,
    latent=0.0,
    commitment=CODEBOOK,
    sample_entropy=CODEBOOK,
    batch_entropy=CODEBOOK,
    hierarchical=CODEBOOK,
    drift=DRIFT,
)
ALIGNED = replace(SELF_SUPERVISED, text_tokens=CODEBOOK, text_words=CODEBOOK, autoregressive=AUTOREGRESSIVE)


def wan22() -> Plan:
    """Self-supervised pretraining, text-visual token alignment, full-scale fine-tuning."""
    pretraining = Recipe(
        name="pretraining",
        stage="language",
        model=MODEL,
        data=DATA,
        encoder="lora",
        decoder="frozen",
        # No caption is ever shown: the objective with language, for its masking, drift and hierarchical terms.
        language=LanguageConfig(caption_dropout=1.0, max_text_tokens=60, masking=PAPER_MASKING),
        buckets=BUCKETS,
        checkpointing=True,
        train=TrainConfig(
            steps=30_000,
            batch_size=4,
            frames=17,
            size=512,
            workers=8,
            compile=False,
            losses=SELF_SUPERVISED,
            optim=OptimConfig(name="adamw", lr=1e-5, warmup=1_000, decay_share=1.0, final_lr_ratio=0.0),
        ),
    )
    alignment = replace(
        pretraining,
        name="alignment",
        model=replace(MODEL, text_head=TextHeadConfig()),
        language=replace(pretraining.language, caption_dropout=0.7, lm=LM),
        train=replace(pretraining.train, steps=60_000, losses=ALIGNED),
    )
    finetuning = replace(
        alignment,
        name="finetuning",
        language=replace(alignment.language, masking=MaskingConfig()),
        buckets=replace(BUCKETS, sides=(128, 256, 512, 1024, 2048, 4096)),
        train=replace(alignment.train, steps=180_000, batch_size=2, losses=replace(ALIGNED, retention=DRIFT)),
    )
    return Plan(name="wan22", stages=(pretraining, alignment, finetuning))
