"""pyratok-nano: the embedded default, trained on two CPU cores. ``nano-vae`` trains the continuous VAE that the method
starts from, ``nano`` is the method, ``nano-answering`` trains what answers questions from the tokens.
"""

from __future__ import annotations

from dataclasses import replace

from pyratok.config import LaPQConfig, PyraTokConfig, TextHeadConfig, WanVAEConfig
from pyratok.data.masking import MaskingConfig
from pyratok.data.mixes import DataConfig
from pyratok.data.synthetic import SceneConfig
from pyratok.model.alignment import TokenLMConfig
from pyratok.model.answerer import AnswererConfig
from pyratok.train.answering import AnsweringConfig
from pyratok.train.language import LanguageConfig
from pyratok.train.objectives import LossWeights
from pyratok.train.optim import OptimConfig
from pyratok.train.run import Recipe
from pyratok.train.stages import Plan
from pyratok.train.trainer import TrainConfig

# Patches of 4 keep the expensive full-rate stage at a sixteenth of the pixels; space is halved once more and time
# twice, for a latent stride of (4, 8, 8). No middle attention, so that tiles and whole frames give the same ids.
VAE = WanVAEConfig(
    base_dim=48,
    dim_mult=(1, 2, 3),
    z_dim=64,
    num_res_blocks=1,
    temporal_downsample=(True, True),
    spatial_downsample=(True, False),
    patch_size=4,
    mid_attention=False,
)
# Level 1 twice as dense in time as the latent and half as dense in space; together 0.24 bits per pixel.
GRIDS = ((2, 16, 16), (4, 8, 8), (4, 8, 8), (4, 8, 8))
MODEL = PyraTokConfig(name="pyratok-nano", vae=VAE, lapq=LaPQConfig(strides=GRIDS, level_dropout=0.12))
# The sample clip that ships with the package is never trained on.
DATA = DataConfig(exclude=("intel_person_bicycle_car_detection", "sample"))
TOKENS_ALONE = LossWeights(l1=0.0, ssim=0.0, commitment=0.0, batch_entropy=0.0)
# What is asked for is a mean PSNR, and words that say all they can.
RECONSTRUCTION = LossWeights(l1=0.0, log_mse=0.05, ssim=0.05, batch_entropy=0.04)


def nano_vae() -> Plan:
    """Reconstruct through the continuous latent: the pretrained VAE that larger models get from elsewhere."""
    stage = Recipe(
        name="vae",
        stage="vae",
        model=MODEL,
        data=DATA,
        train=TrainConfig(steps=2_000, optim=OptimConfig(lr=2e-3, decay_share=0.5)),
    )
    return Plan(name="nano-vae", stages=(stage,))


def nano() -> Plan:
    """The three stages of the method on top of ``nano-vae``: pretraining, alignment with text, fine-tuning; and two in
    which the text head and the language model learn to read the finished tokens.

    LaPQ on the frozen VAE, LoRA in the encoder, the decoder trained throughout. Source: PyraTok (arXiv 2601.16210),
    App. D, with weights chosen for a model of this size (docs/training.md says how).
    """
    # Shorter clips than the decoder can look back teach it nothing about long ones: docs/negative-results.md. The VAE
    # of ``nano-vae`` is no giant to be held to: its encoder learns on in full.
    pretraining = Recipe(
        name="pretraining",
        stage="tokenizer",
        model=MODEL,
        data=DATA,
        encoder="full",
        train=TrainConfig(
            steps=8_000,
            batch_size=4,
            frames=33,
            losses=RECONSTRUCTION,
            optim=OptimConfig(lr=7e-4, decay_share=1.0),
        ),
    )
    lm = TokenLMConfig(num_levels=4, text_dim=384, hidden_size=192, num_layers=3, max_tokens_per_level=96)
    alignment = Recipe(
        name="alignment",
        stage="language",
        model=replace(MODEL, text_head=TextHeadConfig()),
        data=DATA,
        language=LanguageConfig(lm=lm, masking=MaskingConfig(temporal=0.1, spatial=0.2, patch=8)),
        train=TrainConfig(
            steps=3_000,
            batch_size=8,
            frames=17,
            losses=replace(
                RECONSTRUCTION,
                hierarchical=0.002,
                text_tokens=0.05,
                text_words=0.01,
                contrastive=0.05,
                grounding=0.1,
                autoregressive=0.002,
                drift=0.1,
            ),
            optim=OptimConfig(lr=5e-4, decay_share=1.0),
        ),
    )
    tuned = replace(alignment.train.losses, retention=0.1)
    finetuning = replace(
        alignment,
        name="finetuning",
        language=replace(alignment.language, masking=MaskingConfig()),
        train=replace(alignment.train, steps=3_000, batch_size=4, frames=33, losses=tuned),
    )
    # Tokens as they will ship: what reads them meets stored ones many times over, and each of both learns best alone.
    reading = replace(
        alignment,
        name="reading",
        encoder="frozen",
        quantizer="frozen",
        decoder="frozen",
        stored=24_000,
        data=replace(DATA, footage=0.0, photos=0.0, scene=SceneConfig(sizes=(0.5, 0.95), share_room=True)),
        language=LanguageConfig(caption_dropout=1.0, contrast=0.05, vocabulary=256, background=0.25, steps=1),
        train=TrainConfig(
            steps=4_000,
            batch_size=96,
            frames=5,
            size=80,
            losses=replace(TOKENS_ALONE, contrastive=0.5, grounding=1.0, naming=1.0),
            optim=OptimConfig(lr=1.2e-2, decay_share=1.0),
        ),
    )
    predicting = replace(
        reading,
        name="predicting",
        language=LanguageConfig(lm=lm, caption_dropout=1.0),
        train=replace(
            reading.train,
            steps=3_000,
            batch_size=16,
            losses=replace(TOKENS_ALONE, autoregressive=1.0),
            optim=OptimConfig(lr=2e-3, decay_share=1.0),
        ),
    )
    return Plan(name="nano", stages=(pretraining, alignment, finetuning, reading, predicting))


def nano_answering() -> Plan:
    """Tell true statements from false ones, from the tokens of a model that stays as it is."""
    model = replace(MODEL, text_head=TextHeadConfig())
    stage = Recipe(
        name="answering",
        stage="answering",
        model=model,
        encoder="frozen",
        quantizer="frozen",
        decoder="frozen",
        stored=12_000,
        # Objects about as many cells large as they are in larger clips.
        data=replace(DATA, footage=0.0, photos=0.0, scene=SceneConfig(sizes=(0.3, 0.9))),
        answering=AnsweringConfig(answerer=AnswererConfig.reading(model)),
        train=TrainConfig(
            steps=3_000,
            batch_size=32,
            frames=17,
            size=80,
            compile=False,  # statements are of many lengths
            losses=TOKENS_ALONE,
            optim=OptimConfig(lr=2e-3, decay_share=1.0),
        ),
    )
    return Plan(name="nano-answering", stages=(stage,))
