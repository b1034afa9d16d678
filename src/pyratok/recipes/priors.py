"""Priors over the tokens of pyratok-nano, 5.8M parameters each, for clips such as 17x64x64: 1,104 tokens.

The settings of the optimiser are those of the stage ``predicting`` of nano; none of the three has been tuned.
"""

from __future__ import annotations

from pyratok.train.optim import OptimConfig
from pyratok.train.priors import PriorRecipe
from pyratok.train.trainer import TrainConfig

# What a step is made of depends on chance, which a compiled graph would be made anew for.
TRAIN = TrainConfig(steps=4_000, batch_size=16, compile=False, optim=OptimConfig(lr=2e-3, decay_share=1.0))


def prior_ar() -> PriorRecipe:
    """Word after word, all levels of a latent step before the next: frames are final while later ones are sampled."""
    return PriorRecipe(name="prior-ar", kind="ar", order="time", train=TRAIN)


def prior_scale() -> PriorRecipe:
    """Level after level, the words of a level in a few steps."""
    return PriorRecipe(name="prior-scale", kind="scale", train=TRAIN)


def prior_masked() -> PriorRecipe:
    """Words of all levels in any order, in a few steps."""
    return PriorRecipe(name="prior-masked", kind="masked", train=TRAIN)
