"""pyratok-nano: the embedded default, trained in two stages on two CPU cores.

``nano-vae`` trains the continuous VAE; ``nano`` puts LaPQ on top of it: encoder frozen but for LoRA, decoder trained.
"""

from __future__ import annotations

from pyratok.config import LaPQConfig, PyraTokConfig, WanVAEConfig
from pyratok.data.mixes import DataConfig
from pyratok.train.optim import OptimConfig
from pyratok.train.run import Recipe
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
MODEL = PyraTokConfig(name="pyratok-nano", vae=VAE, lapq=LaPQConfig(level_dropout=0.25))
# The sample clip that ships with the package is never trained on.
DATA = DataConfig(exclude=("intel_person_bicycle_car_detection", "sample"))


def nano_vae() -> Recipe:
    """Stage a: reconstruct through the continuous latent."""
    return Recipe(
        name="nano-vae",
        stage="vae",
        model=MODEL,
        data=DATA,
        train=TrainConfig(steps=2_000, optim=OptimConfig(lr=2e-3, decay_share=0.5)),
    )


def nano() -> Recipe:
    """Stage b: LaPQ on the frozen VAE, LoRA in the encoder, the decoder trained."""
    return Recipe(
        name="nano",
        stage="tokenizer",
        model=MODEL,
        data=DATA,
        train=TrainConfig(
            # Shorter clips than the decoder can look back teach it nothing about long ones: docs/negative-results.md.
            steps=16_000,
            batch_size=4,
            frames=33,
            optim=OptimConfig(lr=1e-3, decay_share=1.0),
        ),
    )
