"""Training recipes: functions that return a whole run as one frozen config."""

from __future__ import annotations

from collections.abc import Callable

from pyratok.recipes.nano import nano, nano_vae
from pyratok.recipes.wan22 import wan22
from pyratok.train.stages import Plan

RECIPES: dict[str, Callable[[], Plan]] = {"nano-vae": nano_vae, "nano": nano, "wan22": wan22}
