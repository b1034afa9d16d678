"""Training recipes: functions that return a whole run as one frozen config."""

from __future__ import annotations

from collections.abc import Callable

from pyratok.recipes.nano import nano, nano_answering, nano_vae
from pyratok.recipes.priors import openvid_finetune, prior_ar, prior_llm, prior_masked, prior_scale, t2v_llm, ucf101_ar
from pyratok.recipes.wan22 import wan22
from pyratok.train.priors import PriorRecipe
from pyratok.train.stages import Plan

RECIPES: dict[str, Callable[[], Plan]] = {
    "nano-vae": nano_vae,
    "nano": nano,
    "nano-answering": nano_answering,
    "wan22": wan22,
}
PRIORS: dict[str, Callable[[], PriorRecipe]] = {
    "prior-ar": prior_ar,
    "prior-scale": prior_scale,
    "prior-masked": prior_masked,
    "prior-llm": prior_llm,
    "t2v-llm": t2v_llm,
    "ucf101-ar": ucf101_ar,
    "openvid-finetune": openvid_finetune,
}
