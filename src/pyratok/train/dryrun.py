"""What a plan would do, and the memory it would take, found out without weights, media, or anything written.

Every stage is built for real, but of fake tensors (shapes without values), and its objective runs forward once for the
smallest and once for the largest batch. What :class:`Memory` counts is said there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from pyratok.data.captioned import MAX_OBJECTS, CaptionedBatch
from pyratok.data.questions import Question
from pyratok.losses.perceptual import PerceptualLoss, st_lpips
from pyratok.model.pyratok import PyraTok
from pyratok.text.hf_loading import load_frozen, load_text_model, read_config
from pyratok.text.minilm import minilm_folder
from pyratok.text.references import FrameFeatures, patch_grid, reference_config
from pyratok.train.answering import AskedBatch
from pyratok.train.assembly import assemble, naming, resolve
from pyratok.train.language import LanguageObjective
from pyratok.train.objectives import Objective
from pyratok.train.optim import Muon, OptimConfig, build_optimizers
from pyratok.train.recipe import Recipe
from pyratok.train.stages import Plan
from pyratok.train.stored import TokenBatch
from pyratok.types import Geometry, TextEmbedding
from pyratok.vae.hub import resolve_folder

FOUR_BIT_BYTES = 0.52
"""Of a weight in NF4 or AWQ, with its share of the scales."""

PARTS = (
    ("tokenizer.", ""),
    ("vae.", ""),
    ("text_head.", "text head"),
    ("lapq.", "LaPQ"),
    ("answerer.head.", "text head"),
    ("answerer.", "answerer"),
    ("lm.", "language model"),
    ("projector.", "projector"),
)
A_QUESTION = Question(text="How many?", options=("one", "two", "three", "four"), answer=0, kind="count")
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device that holds everything, without sharding.

    ``weights``: all models, those that are looked at included, in the type they are kept in; weights that are
    quantized to 4 bits at about half a byte. ``gradients``: of what trains. ``optimizer``: its moments. ``average``:
    the EMA copy of what the objective owns, its frozen parts too. ``activations``: per shape of a batch (frames,
    height, width), the tensors that the forward pass of a micro-batch keeps for its backward pass, each storage once,
    weights left out; the whole batch, or ``1 / accumulate`` of it, is taken to be on this device.

    Not counted: what a block holds while it is computed, or computed again under checkpointing; workspaces and
    fragmentation; the buckets of DDP. A device with other kernels may keep other tensors.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: Mapping[str, int]

    @property
    def standing(self) -> int:
        """All but the activations."""
        return self.weights + self.gradients + self.optimizer + self.average

    @property
    def total(self) -> int:
        """With the activations of the largest batch."""
        return self.standing + max(self.activations.values())


@dataclass(frozen=True, kw_only=True)
class StageOutline:
    """What a stage would do. ``batch_size``: clips of a step; ``micro_batch``: of what is computed at once, which the
    activations are those of. ``shapes``: frames x height x width of its batches, smallest first. ``terms``: loss terms
    with their weights. ``trainable`` and ``frozen``: numbers of parameters by part.
    """

    name: str
    steps: int
    batch_size: int
    micro_batch: int
    shapes: tuple[str, ...]
    terms: Mapping[str, float]
    trainable: Mapping[str, int]
    frozen: Mapping[str, int]
    memory: Memory


def outline_plan(plan: Plan) -> list[StageOutline]:
    """Outlines of all stages. Raises ValueError as a run would for folders that do not hold what they should."""
    return [outline(resolve(recipe)) for recipe in plan.stages]


def outline(recipe: Recipe) -> StageOutline:
    """Outline of one stage whose ``sources`` are resolved."""
    perceptual = st_lpips(frames_per_clip=1) if recipe.train.losses.perceptual else None
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by copies of modules
        beside = frozen_models(recipe)
        objective = fake_objective(recipe, perceptual, beside)
        shapes = list(dict.fromkeys((recipe.shapes[0], recipe.shapes[-1])))
        lent_weights = [weight for module in beside.values() for weight in module.parameters()]
        runs = {_named(shape): forward(recipe, objective, shape, lent_weights) for shape in shapes}
        model = objective.model
        own = list(model.parameters())
        if isinstance(objective, LanguageObjective) and isinstance(objective.reference, nn.Module):
            beside["reference"] = objective.reference
        if perceptual is not None:
            beside["perceptual loss"] = perceptual
        lent = sum(_frozen_bytes(module, _is_quantized(recipe, name)) for name, module in beside.items())
        optimizer = optimizer_bytes(model, recipe.train.optim)
    trainable, frozen = by_part(recipe, model)
    memory = Memory(
        weights=_bytes(own) + lent,
        gradients=_bytes(weight for weight in own if weight.requires_grad),
        optimizer=optimizer,
        average=_bytes([*own, *model.buffers()]),
        activations={name: saved for name, (_, saved) in runs.items()},
    )
    terms, _ = runs[_named(shapes[0])]
    return StageOutline(
        name=recipe.name,
        steps=recipe.train.steps,
        batch_size=recipe.train.batch_size,
        micro_batch=recipe.train.batch_size // recipe.train.accumulate,
        shapes=tuple(map(_named, recipe.shapes)),
        terms=terms,
        trainable=trainable,
        frozen=frozen | {name: sum(w.numel() for w in module.parameters()) for name, module in beside.items()},
        memory=memory,
    )


def frozen_models(recipe: Recipe) -> dict[str, Any]:
    """Pretrained models that a stage looks at, by name, without their weights."""
    sources, losses = recipe.sources, recipe.train.losses
    found: dict[str, Any] = {}
    if not recipe.names_objects:
        return found
    if recipe.reads_captions or recipe.stage == "answering":
        with naming("text"):
            folder = minilm_folder() if sources.text is None else resolve_folder(sources.text)
            found["text encoder"] = load_text_model(folder, outline=True)
    if sources.reference is not None and (losses.drift or losses.retention):
        with naming("reference"):
            found["reference"] = load_frozen(*reference_config(sources.reference), outline=True)
    lm = recipe.language.lm
    if lm is not None and lm.backbone is not None and losses.autoregressive:
        with naming("lm"):
            found["language model"] = load_text_model(resolve_folder(lm.backbone), outline=True)
            found["language model"].set_input_embeddings(nn.Identity())
    return found


def fake_objective(recipe: Recipe, perceptual: PerceptualLoss | None, beside: Mapping[str, Any]) -> Objective:
    """The objective as :func:`pyratok.train.assembly.build_objective` makes it, of fake tensors."""
    objective = assemble(
        recipe,
        PyraTok(recipe.model),
        text=lambda: _Text(recipe.model.lapq.text_dim, recipe.language.max_text_tokens),
        reference=lambda: _Reference(beside["reference"].config, recipe.sources.reference_side),
        perceptual=perceptual,
        backbone=beside.get("language model"),
    )
    if isinstance(objective, LanguageObjective) and recipe.buckets is None:
        objective.texts.learn_names([f"thing {number}" for number in range(recipe.language.vocabulary)])
    return objective


def forward(recipe: Recipe, objective: Objective, shape: Shape, lent: Iterable[Tensor]) -> tuple[dict[str, float], int]:
    """Weights of the terms of one micro-batch, and the bytes that its backward pass would need; under fake tensors.

    ``lent``: weights of models that are no part of the objective.
    """
    frames, height, width = shape
    videos = torch.zeros(
        recipe.train.batch_size // recipe.train.accumulate, 3, frames, height, width, dtype=torch.uint8
    )
    batch: Tensor | CaptionedBatch | TokenBatch | AskedBatch = videos
    if recipe.names_objects:
        count, strides = len(videos), recipe.model.lapq.strides
        geometry = Geometry(frames=frames, height=height, width=width, strides=strides)
        grids = [geometry.grid(level) for level in range(len(strides))]
        texts: dict[str, Any] = {"captions": ("a caption",) * count, "nouns": (("",) * MAX_OBJECTS,) * count}
        masks = torch.zeros(count, MAX_OBJECTS, *grids[-1])
        levels = tuple(torch.zeros(count, *grid, dtype=torch.int32) for grid in grids)
        if recipe.answering is not None and recipe.stage == "answering":
            asked = (A_QUESTION,) * recipe.answering.questions
            weights_of = ((1.0,) * len(asked),) * count
            batch = AskedBatch(levels=levels, questions=(asked,) * count, weights=weights_of, held_out=(False,) * count)
        elif recipe.stored:
            batch = TokenBatch(levels=levels, masks=masks, **texts)
        else:
            batch = CaptionedBatch(videos=videos, masks=masks, **texts)
    clips, choices = objective.prepare(batch)
    if "window" in choices:
        choices["window"] = torch.tensor(0.5)  # a value that is read, where a drawn one would have none
    weights = {weight.untyped_storage()._cdata for weight in (*objective.parameters(), *lent)}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.bf16),
    ):
        losses = objective(clips.contiguous(memory_format=torch.channels_last_3d), **choices)
    return dict(losses.weights), sum(storage.nbytes() for storage in kept.values())


def optimizer_bytes(model: nn.Module, config: OptimConfig) -> int:
    """Muon keeps one value per weight, AdamW two."""
    return sum(
        (1 if isinstance(optimizer, Muon) else 2) * _bytes(group["params"])
        for optimizer in build_optimizers(model.named_parameters(), config)
        for group in optimizer.param_groups
    )


def by_part(recipe: Recipe, model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of trainable and of frozen parameters, by the part of the model."""
    trainable: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for name, weight in model.named_parameters():
        part, counts = _part(name), trainable if weight.requires_grad else frozen
        counts[part] = counts.get(part, 0) + weight.numel()
    return trainable, frozen


def _part(name: str) -> str:
    for prefix, part in PARTS:
        if name.startswith(prefix):
            if part:
                return part
            name = name.removeprefix(prefix)
    half = "encoder" if name.startswith(("encoder.", "quant_conv.")) else "decoder"
    return f"{half} LoRA" if name.endswith((".up", ".down")) else half


def _is_quantized(recipe: Recipe, name: str) -> bool:
    """Are the linear layers of this frozen model held in 4 bits?"""
    source = {"text encoder": recipe.sources.text, "language model": recipe.sources.lm}.get(name)
    if source is None:
        return False
    return recipe.sources.load_in_4bit or hasattr(read_config(resolve_folder(source)), "quantization_config")


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _frozen_bytes(module: nn.Module, quantized: bool) -> int:
    """Bytes of a model's weights, those of linear layers in 4 bits if it is ``quantized``."""
    packed = [layer.weight for layer in module.modules() if quantized and isinstance(layer, nn.Linear)]
    return _bytes(module.parameters()) - _bytes(packed) + round(FOUR_BIT_BYTES * sum(w.numel() for w in packed))


def _named(shape: Shape) -> str:
    return "x".join(map(str, shape))


class _Text:
    """Captions of full length."""

    name = "outline"

    def __init__(self, dim: int, max_tokens: int) -> None:
        self.dim, self.max_tokens = dim, max_tokens

    def encode(self, texts: Sequence[str]) -> TextEmbedding:
        tokens = torch.zeros(len(texts), self.max_tokens, self.dim)
        return TextEmbedding(tokens=tokens, mask=tokens[..., 0] == 0, pooled=tokens[:, 0])


class _Reference:
    """Features of the right shapes."""

    name = "outline"

    def __init__(self, config: Any, max_side: int) -> None:
        self.dim: int = config.hidden_size
        self.patch: int = config.patch_size
        self.max_side = max_side

    def encode_frames(self, video: Tensor) -> FrameFeatures:
        height, width = video.shape[-2:]
        rows, columns = patch_grid(height, width, self.patch, self.max_side)
        pooled = torch.zeros(video.shape[0], video.shape[2], self.dim)
        patches = pooled[:, :, None].expand(-1, -1, rows * columns, -1)
        return FrameFeatures(patches=patches, pooled=pooled, grid=(rows, columns))
