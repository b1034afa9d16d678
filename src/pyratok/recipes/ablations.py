"""The ablations of the paper at the size of pyratok-nano: what each variant changes, and the paper's row for it.

A variant is the base recipe with dotted fields changed, or with a baseline quantizer in the place of LaPQ. All variants
of all ablations train alike, from the VAE alone, on the same clips, at the same rate as nearly as words of whole bits
on whole grids allow; one name is one model wherever it stands.

Sources: PyraTok (arXiv 2601.16210), Table 6 (components, blocks, losses), 9 (quantizers), 10 (losses, understanding);
on the size of the vocabulary the paper gives a range, no table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyratok.config import LaPQConfig, from_dict, nearest, section_of, set_field, to_dict
from pyratok.data.masking import MaskingConfig
from pyratok.eval.ablation import Outline
from pyratok.model.baseline import BaselineConfig
from pyratok.quantization.baselines import Kind, QuantizerConfig
from pyratok.recipes.nano import nano
from pyratok.train.recipe import Recipe
from pyratok.types import Geometry, Stride

WORDS_PER_CELL = 4
"""Words of a baseline for each cell of the latent grid: of 13 bits each at nano's rate, so 8,192, the paper's 4,096 to
32,800. One word would have to be one of 2^51."""


@dataclass(frozen=True, kw_only=True)
class Variant(Outline):
    """``changes``: dotted fields of the base recipe. ``quantizer``: a baseline in place of LaPQ, whose
    :data:`WORDS_PER_CELL` words come from as many codebooks, or from one where ``shared``."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    quantizer: Kind | None = None
    shared: bool = True


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A table: variants by name, each to be held against ``reference``."""

    name: str
    title: str
    variants: Mapping[str, Variant]
    reference: str = "full"

    def chosen(self, only: Sequence[str] = ()) -> tuple[str, ...]:
        """The variants to train: all, or ``only`` those. Raises: ValueError for an unknown one, with the nearest."""
        if unknown := [name for name in only if name not in self.variants]:
            hint = nearest(unknown[0], self.variants)
            raise ValueError(f"{self.name} has no variant {unknown[0]!r}{hint}; there are {', '.join(self.variants)}")
        return tuple(name for name in self.variants if not only or name in only)


@dataclass(frozen=True, kw_only=True)
class VariantPlan:
    """A variant ready to be trained: ``baseline`` says what takes the place of ``recipe.model``, if anything.

    ``reading``: how its text head then learns from its finished tokens, by the terms that the variant learned by; None
    where it does not.
    """

    recipe: Recipe
    baseline: BaselineConfig | None = None
    reading: Recipe | None = None

    @property
    def bits_per_pixel(self) -> float:
        """Raw rate of a training clip."""
        train, lapq = self.recipe.train, self.recipe.model.lapq
        if self.baseline is None:
            return clip_bits(lapq.strides, lapq.num_bits, train.frames, train.size) / (train.frames * train.size**2)
        strides = (self.baseline.vae.latent_stride,) * self.baseline.words_per_cell
        bits = self.baseline.quantizer.bits_per_stage
        return clip_bits(strides, bits, train.frames, train.size) / (train.frames * train.size**2)


def clip_bits(strides: tuple[Stride, ...], num_bits: int, frames: int, size: int) -> int:
    """Bits of all tokens of a clip ``frames x size x size``."""
    geometry = Geometry(frames=frames, height=size, width=size, strides=strides)
    return num_bits * sum(math.prod(geometry.grid(level)) for level in range(len(strides)))


def base() -> Recipe:
    """nano's alignment with text, made small: every variant begins, and ends, here."""
    alignment = next(stage for stage in nano().stages if stage.stage == "language")
    assert alignment.language.lm is not None
    # Independent bits, since words of 13 or 17 bits do not divide into chunks.
    lm = replace(
        alignment.language.lm, head="bits", hidden_size=128, num_layers=2, num_heads=4, max_tokens_per_level=64
    )
    train, model = alignment.train, alignment.model
    return replace(
        alignment,
        name="ablation",
        # A first level of one word per frame, as the paper has it. All are measured whole: clips decoded from a part
        # of the levels would cost LaPQ what no baseline pays, and four levels more than two.
        model=replace(model, lapq=replace(model.lapq, strides=LaPQConfig().strides, level_dropout=0.0)),
        language=replace(alignment.language, lm=lm, masking=MaskingConfig()),
        train=replace(
            train,
            steps=250,
            batch_size=8,
            frames=17,
            size=64,
            compile=False,  # compiling takes as long as a hundred steps
            # Of 5e-4 and 2e-3 the second, and a decay from the first step on, gave 2.3 dB more after 80 steps.
            optim=replace(train.optim, lr=2e-3, warmup=10, decay_share=1.0),
        ),
    )


def reading() -> Recipe:
    """nano's reading of finished tokens, made small: what tokens say is asked when a head has had time to read them."""
    stage = next(stage for stage in nano().stages if stage.name == "reading")
    return replace(
        stage,
        stored=1_536,
        # The last level alone is read, all of its steps.
        language=replace(stage.language, steps=0),
        train=replace(
            stage.train,
            steps=120,
            batch_size=48,
            size=64,
            compile=False,
            optim=replace(stage.train.optim, warmup=10),
        ),
    )


def plan(base: Recipe, variant: Variant, reading: Recipe | None = None) -> VariantPlan:
    """The variant of a base recipe, at the base's rate if it has a baseline quantizer.

    Raises: ValueError for fields that the recipe does not have, or values that it refuses.
    """
    recipe = with_changes(base, variant.changes)
    if reading is not None:
        learned, read = recipe.train.losses, reading.train.losses
        losses = replace(
            read,
            contrastive=read.contrastive if learned.contrastive else 0.0,
            # Naming is the grounding of a whole clip.
            grounding=read.grounding if learned.grounding else 0.0,
            naming=read.naming if learned.grounding else 0.0,
        )
        reading = replace(reading, model=recipe.model, train=replace(reading.train, losses=losses))
        reading = reading if losses.aligns else None
    lapq, lm = recipe.model.lapq, recipe.language.lm
    if variant.quantizer is not None:
        bits = clip_bits(lapq.strides, lapq.num_bits, recipe.train.frames, recipe.train.size)
        words = clip_bits((lapq.strides[-1],) * WORDS_PER_CELL, 1, recipe.train.frames, recipe.train.size)
        per_word = max(1, round(bits / words))
        tokens, stages = (WORDS_PER_CELL, 1) if variant.shared else (1, WORDS_PER_CELL)
        assert recipe.model.text_head is not None
        baseline = BaselineConfig(
            name=f"{recipe.model.name}-{variant.quantizer}",
            vae=recipe.model.vae,
            quantizer=QuantizerConfig(
                kind=variant.quantizer, dim=lapq.width // tokens, bits=per_word * stages, stages=stages
            ),
            tokens_per_cell=tokens,
            text_head=recipe.model.text_head,
            text_dim=lapq.text_dim,
        )
        # What LaPQ alone has is not asked for.
        losses = replace(recipe.train.losses, autoregressive=0.0, hierarchical=0.0)
        language = replace(recipe.language, lm=None)
        without = replace(recipe, language=language, train=replace(recipe.train, losses=losses))
        return VariantPlan(recipe=without, baseline=baseline, reading=reading)
    if lm is not None:
        lm = replace(lm, num_levels=lapq.num_levels, num_bits=lapq.num_bits, text_dim=lapq.text_dim)
    return VariantPlan(recipe=replace(recipe, language=replace(recipe.language, lm=lm)), reading=reading)


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with dotted fields, such as ``train.losses.drift``, replaced.

    Raises: ValueError for a field that is not there (naming the nearest), or a value that the recipe refuses.
    """
    fields = to_dict(recipe)
    for path, value in changes.items():
        if not set_field(fields, path, value):
            hint = nearest(path.rpartition(".")[2], section_of(fields, path))
            raise ValueError(f"the base recipe has no field {path!r}{hint}")
    return from_dict(Recipe, fields)


def _levels(taps: Sequence[int], strides: Sequence[Stride], num_bits: int) -> dict[str, Any]:
    lapq = {"taps": list(taps), "strides": [list(stride) for stride in strides], "num_bits": num_bits}
    return {f"model.lapq.{name}": value for name, value in lapq.items()}


def _reconstruction(*numbers: float) -> dict[str, tuple[float, ...]]:
    """PSNR, SSIM and LPIPS on COCO, then the same on WebVid."""
    return {name: (numbers[i], numbers[i + 3]) for i, name in enumerate(("psnr", "ssim", "perceptual"))}


def _without(*terms: str) -> dict[str, Any]:
    return {f"train.losses.{term}": 0.0 for term in terms}


LATENT: Stride = (4, 8, 8)
"""Grid of nano's latent."""

FULL_PAPER = _reconstruction(35.72, 0.879, 0.066, 36.05, 0.885, 0.071)
FULL = Variant(label="full method", paper=FULL_PAPER)
LFQ = Variant(
    label="LFQ, one level",
    note="four 13-bit words per latent cell from one sign quantizer",
    quantizer="lfq",
    paper=_reconstruction(34.22, 0.842, 0.084, 33.92, 0.855, 0.085),
)

COMPONENTS = Ablation(
    name="components",
    title="What each part of the method brings",
    variants={
        "full": FULL,
        "lfq": replace(
            LFQ,
            label="without LaPQ",
            note="one level of LFQ on the encoder's last feature, four 13-bit words per latent cell",
            paper=_reconstruction(31.41, 0.831, 0.101, 31.47, 0.799, 0.118),
        ),
        "without-text-guidance": Variant(
            label="without text guidance",
            note="every clip is tokenised without its caption; the alignment terms stay",
            changes={"language.caption_dropout": 1.0},
            paper=_reconstruction(33.43, 0.861, 0.081, 36.02, 0.833, 0.082),
        ),
        "without-pyramid": Variant(
            label="without pyramid",
            note="four levels of 13 bits on the latent grid, all from the encoder's last feature",
            changes=_levels((3, 3, 3, 3), [LATENT] * 4, 13),
            paper=_reconstruction(34.02, 0.859, 0.082, 34.02, 0.839, 0.094),
        ),
    },
)

BLOCKS = Ablation(
    name="blocks",
    title="How many levels",
    variants={
        "full": replace(FULL, label="4 blocks"),
        "3-blocks": Variant(
            label="3 blocks",
            note="18 bits; the first level is twice as dense along each side",
            changes=_levels((0, 1, 3), [(1, 16, 16), LATENT, LATENT], 18),
            paper=_reconstruction(34.78, 0.862, 0.089, 35.14, 0.867, 0.085),
        ),
        "2-blocks": Variant(
            label="2 blocks",
            note="18 bits; the first level has the latent's cells and twice its steps",
            changes=_levels((0, 3), [(2, 8, 8), LATENT], 18),
            paper=_reconstruction(33.21, 0.821, 0.092, 33.98, 0.844, 0.101),
        ),
    },
)

LOSSES = Ablation(
    name="losses",
    title="What each loss term brings",
    variants={
        "full": replace(FULL, label="all terms", paper={**FULL_PAPER, "classification_seen": (33.17, 29.11, 86.03)}),
        "without-drift": Variant(
            label="without drift",
            changes=_without("drift"),
            paper={
                **_reconstruction(33.48, 0.839, 0.082, 34.52, 0.853, 0.081),
                "classification_seen": (31.27, 27.62, 83.32),
            },
        ),
        "without-ar": Variant(
            label="without AR",
            changes=_without("autoregressive"),
            paper={
                **_reconstruction(33.42, 0.842, 0.079, 34.01, 0.844, 0.079),
                "classification_seen": (32.45, 27.98, 79.45),
            },
        ),
        "without-drift-and-ar": Variant(
            label="without drift and AR",
            changes=_without("drift", "autoregressive"),
            paper={
                **_reconstruction(32.17, 0.832, 0.093, 32.32, 0.831, 0.092),
                "classification_seen": (29.29, 26.78, 81.57),
            },
        ),
        "without-commitment": Variant(
            label="without commitment",
            changes=_without("commitment"),
            paper={
                **_reconstruction(32.88, 0.819, 0.097, 33.45, 0.839, 0.101),
                "classification_seen": (32.67, 28.21, 84.23),
            },
        ),
        "without-text-tokens": Variant(
            label="without text-conditioned alignment",
            changes=_without("text_tokens"),
            paper={
                **_reconstruction(33.27, 0.822, 0.092, 34.12, 0.855, 0.091),
                "classification_seen": (30.22, 27.55, 83.56),
            },
        ),
        "without-text-words": Variant(
            label="without text-codebook alignment",
            changes=_without("text_words"),
            paper={
                **_reconstruction(34.11, 0.849, 0.087, 34.78, 0.872, 0.083),
                "classification_seen": (31.11, 27.07, 83.91),
            },
        ),
        "without-batch-entropy": Variant(
            label="without batch entropy", note="not in the paper", changes=_without("batch_entropy")
        ),
        "without-contrastive": Variant(
            label="without contrastive", note="a term of ours", changes=_without("contrastive")
        ),
        "without-grounding": Variant(label="without grounding", note="a term of ours", changes=_without("grounding")),
        "without-alignment": Variant(
            label="without any alignment",
            note="the text head is never taught, so the semantic measures are near chance",
            changes=_without("text_tokens", "text_words", "contrastive", "grounding"),
        ),
    },
)

QUANTIZERS = Ablation(
    name="quantizers",
    title="LaPQ and the quantizers of others",
    variants={
        "full": replace(FULL, label="LaPQ"),
        "vq": Variant(
            label="VQ",
            note="one codebook of 8,192 for four tokens per latent cell",
            quantizer="vq",
            paper=_reconstruction(31.45, 0.825, 0.093, 32.91, 0.838, 0.092),
        ),
        "gvq": Variant(
            label="GVQ",
            note="the same, drawn by Gumbel-softmax",
            quantizer="gvq",
            paper=_reconstruction(32.25, 0.836, 0.089, 33.34, 0.842, 0.089),
        ),
        "lfq": LFQ,
        "rvq": Variant(
            label="RVQ",
            note="four residual codebooks of 8,192 per latent cell",
            quantizer="rvq",
            shared=False,
            paper=_reconstruction(33.92, 0.849, 0.078, 34.22, 0.865, 0.079),
        ),
        "rvq-lfq": Variant(
            label="RVQ-LFQ",
            note="four residual stages of 13 signs per latent cell",
            quantizer="rvq-lfq",
            shared=False,
            paper=_reconstruction(34.78, 0.869, 0.076, 35.27, 0.879, 0.074),
        ),
        "unitok": Variant(
            label="UniTok", note="four chunks with codebooks of their own", quantizer="unitok", shared=False
        ),
        "tokenflow": Variant(
            label="TokenFlow", note="a semantic and a pixel codebook share each index", quantizer="tokenflow"
        ),
    },
)

VOCABULARY = Ablation(
    name="vocabulary",
    title="How large a vocabulary",
    variants={
        "12-bits": Variant(
            label="4K words",
            note="12 bits; a fifth level takes up the rate",
            changes=_levels((0, 1, 2, 3, 3), [(1, 32, 32), LATENT, LATENT, LATENT, LATENT], 12),
        ),
        "14-bits": Variant(
            label="16K words",
            note="14 bits; a coarse fifth level takes up the rate",
            changes=_levels((0, 1, 1, 2, 3), [(1, 32, 32), (2, 16, 16), LATENT, LATENT, LATENT], 14),
        ),
        "full": replace(FULL, label="65K words", note="16 bits"),
        "17-bits": Variant(
            label="131K words",
            note="17 bits; the first level has half as many steps",
            changes=_levels((0, 1, 2, 3), [(2, 32, 32), LATENT, LATENT, LATENT], 17),
        ),
    },
)

ABLATIONS: dict[str, Ablation] = {a.name: a for a in (COMPONENTS, BLOCKS, LOSSES, QUANTIZERS, VOCABULARY)}


def find_ablation(name: str) -> Ablation:
    """Raises: ValueError for an unknown one, naming the nearest."""
    if name not in ABLATIONS:
        hint = nearest(name, ABLATIONS)
        raise ValueError(f"there is no ablation {name!r}{hint}; there are {', '.join(ABLATIONS)}")
    return ABLATIONS[name]
