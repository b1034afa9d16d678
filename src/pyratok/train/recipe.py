"""What a whole training run is: one frozen config."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyratok.config import PyraTokConfig, to_dict
from pyratok.data.buckets import BucketConfig
from pyratok.data.mixes import DataConfig
from pyratok.model.pretrained import read_config
from pyratok.nn.lora import LoRAConfig
from pyratok.train.answering import AnsweringConfig
from pyratok.train.language import LanguageConfig
from pyratok.train.trainer import TrainConfig
from pyratok.types import Geometry


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Folders (or hub ids, which alone are fetched) of pretrained models that a run is built around.

    ``vae``: a diffusers ``AutoencoderKLWan``; its shape replaces ``model.vae``, its weights are where a run without
    ``--init`` starts. None: the VAE comes with ``--init``. ``text``: a transformers text encoder or language model for
    captions; its width replaces ``model.lapq.text_dim``. None: MiniLM. ``lm``: the causal language model of L_AR,
    frozen. None: what ``language.lm`` says. ``reference``: the DINOv2 or DINOv3 that drift and retention look up to.
    None: the encoder as it was before the stage. ``reference_side``: longest side of a frame, in pixels, that it is
    shown. ``load_in_4bit``: text encoder and language model by bitsandbytes; an AWQ folder needs no option.
    """

    vae: str | None = None
    text: str | None = None
    lm: str | None = None
    reference: str | None = None
    reference_side: int = 512
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        if self.reference_side < 1:
            raise ValueError(f"reference_side must be at least 1 pixel, got {self.reference_side}")
        if self.load_in_4bit and not (self.text or self.lm):
            raise ValueError("load_in_4bit is for sources.text and sources.lm; give one of them")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. ``stage``: "vae" trains the continuous VAE, "tokenizer" LaPQ on top of it, "language" both with
    captions, as ``language`` says; "answering" a small network that answers questions from finished tokens, as
    ``answering`` says.

    From the tokenizer stage on ``encoder`` and ``decoder`` say how the halves of the VAE learn: not at all, by adapters
    of shape ``lora``, or in full. The paper's encoder is frozen under adapters, which asks for a VAE that was
    trained to the end.

    ``buckets``: footage alone, every batch of one bucket; None for square clips of ``train.frames`` and ``train.size``
    of all kinds. ``checkpointing``: blocks keep their inputs alone and are computed again in the backward pass.

    ``stored``: where nothing of the tokenizer learns, so many clips are tokenised once and met again and again
    (:mod:`pyratok.train.stored`); 0 shows a new clip each time.
    """

    name: str
    stage: Literal["vae", "tokenizer", "language", "answering"]
    model: PyraTokConfig
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig
    encoder: Literal["frozen", "lora", "full"] = "lora"
    quantizer: Literal["frozen", "full"] = "full"
    decoder: Literal["frozen", "lora", "full"] = "full"
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    answering: AnsweringConfig | None = None
    sources: Sources = field(default_factory=Sources)
    buckets: BucketConfig | None = None
    checkpointing: bool = False
    stored: int = 0

    def __post_init__(self) -> None:
        halves = {self.encoder, self.decoder}
        if self.stage not in ("vae", "tokenizer", "language", "answering") or not halves <= {"frozen", "lora", "full"}:
            choices = f"stage {self.stage!r}, encoder {self.encoder!r}, decoder {self.decoder!r}"
            raise ValueError(f"one of {choices} is not one of the documented choices")
        if self.quantizer not in ("frozen", "full"):
            raise ValueError(f"quantizer must be 'frozen' or 'full', got {self.quantizer!r}")
        if self.stage == "language" and self.train.losses.aligns and self.model.text_head is None:
            raise ValueError("losses that align tokens with text need a text head; set model.text_head={} or them to 0")
        if self.buckets is not None and (self.data.photos or self.data.sprites or self.data.scenes):
            raise ValueError("buckets are cut from footage alone; set data.photos, data.sprites and data.scenes to 0")
        if self.stored < 0:
            raise ValueError(f"stored must be a number of clips, 0 or more, got {self.stored}")
        if self.stored and (not self.names_objects or not self.is_finished or self.buckets is not None):
            raise ValueError(
                "clips are stored as tokens in the stages language and answering alone, where encoder, quantizer and "
                "decoder are frozen and no loss needs pixels, and not in buckets; otherwise set stored to 0"
            )
        if self.stage == "answering":
            if not self.stored or self.answering is None:
                raise ValueError("the answering stage needs stored, a number of clips, and answering.answerer")
            self.answering.answerer.require_tokenizer(self.model)
        for frames, height, width in self.shapes:
            shape = Geometry(frames=frames, height=height, width=width, strides=self.model.lapq.strides)
            if shape.padded != (frames, height, width):
                wanted = f"clips of {frames}x{height}x{width} do not fill the token grids; next is {shape.padded}"
                least = math.lcm(*(side for stride in self.model.lapq.strides for side in stride[1:]))
                raise ValueError(wanted + (f"; buckets.multiple = {least} does" if self.buckets else ""))

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Frames, height and width of every kind of batch, smallest first."""
        if self.buckets is None:
            return ((self.train.frames, self.train.size, self.train.size),)
        found = ((bucket.frames, bucket.height, bucket.width) for bucket in self.buckets.buckets())
        return tuple(sorted(found, key=math.prod))

    @property
    def is_finished(self) -> bool:
        """Do tokens stay as they are, and does no loss look at anything else?"""
        losses = self.train.losses
        looks = losses.reconstructs or losses.drift or losses.retention or losses.hierarchical
        return self.encoder == self.quantizer == self.decoder == "frozen" and not looks

    @property
    def names_objects(self) -> bool:
        """Are its clips rendered scenes whose objects are known?"""
        return self.stage in ("language", "answering")

    @property
    def reads_captions(self) -> bool:
        """Does anything of this stage depend on captions?"""
        losses = self.train.losses
        blind = self.language.caption_dropout == 1 and not (losses.aligns or losses.autoregressive)
        return self.stage == "language" and not blind

    def origin(self, init: Path | None) -> dict[str, Any]:
        """What a run learns follows from this (and the media), JSON-ready: the settings, and which model it began with.

        Raises ValueError where ``init`` is no model folder.
        """
        found: dict[str, Any] = to_dict(self) | {"train": self.train.origin(), "init": None}
        del found["checkpointing"]  # another way to the same losses
        if init is not None:
            _, config = read_config(init)
            found["init"] = str(config.get("digest", config.get("fingerprint")))[:16]
        return found
