"""Variants of the method, each trained alike, measured alike, and held against the paper's order of them.

Source: PyraTok (arXiv 2601.16210), Tables 6, 9 and 10. At another size and after another training, absolute numbers
cannot be those of the paper; which of two variants is better may be.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyratok.data.synthetic import CaptionedScenes, SceneConfig
from pyratok.eval.base import HashedProtocol, versions
from pyratok.eval.language import LanguageProtocol, evaluate_language
from pyratok.eval.reconstruction import EvalProtocol, evaluate_reconstruction, load_clip

if TYPE_CHECKING:
    from pyratok.losses.perceptual import PerceptualLoss
    from pyratok.model.base import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class AblationProtocol(HashedProtocol):
    """What every variant is asked. Clips are as long as those of the training: no variant was shown longer ones."""

    benchmark: str = "ablation"
    reconstruction: EvalProtocol = field(default_factory=lambda: EvalProtocol(size=128, crop=128, frames=17))
    language: LanguageProtocol = field(default_factory=lambda: LanguageProtocol(clips=100))
    perceptual: str = "ST-LPIPS per frame, mean over frames, then over clips"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column: how it is called, printed (``share``: in percent), read, and what the paper's numbers beside it are."""

    label: str
    digits: int
    share: bool = False
    higher_is_better: bool = True
    paper: str = ""

    def shown(self, value: float, sign: bool = False) -> str:
        return f"{100 * value if self.share else value:{'+' if sign else ''}.{self.digits}f}"


MEASURES: dict[str, Measure] = {
    "psnr": Measure(label="PSNR, dB", digits=2, paper="PSNR, COCO / WebVid"),
    "ssim": Measure(label="SSIM", digits=3, paper="SSIM, COCO / WebVid"),
    "perceptual": Measure(label="ST-LPIPS", digits=3, higher_is_better=False, paper="LPIPS, COCO / WebVid"),
    "classification_seen": Measure(
        label="noun, seen, %", digits=1, share=True, paper="THUMOS14 / ActivityNet / MVBench"
    ),
    "classification_unseen": Measure(label="noun, unseen, %", digits=1, share=True),
    "retrieval_1": Measure(label="R@1, %", digits=1, share=True),
    "retrieval_5": Measure(label="R@5, %", digits=1, share=True),
    "pointing_seen": Measure(label="pointing, seen, %", digits=1, share=True),
    "pointing_unseen": Measure(label="pointing, unseen, %", digits=1, share=True),
}

_SCORES = {
    ("classification", "seen"): "classification_seen",
    ("classification", "unseen"): "classification_unseen",
    ("retrieval, recall at 1", "seen"): "retrieval_1",
    ("retrieval, recall at 5", "seen"): "retrieval_5",
    ("pointing", "seen"): "pointing_seen",
    ("pointing", "unseen"): "pointing_unseen",
}
"""Name and nouns of a language score to the measure it is here."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is known of a variant before it is trained: its label, a word about it, the paper's numbers by measure."""

    label: str
    note: str = ""
    paper: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VariantRun:
    """A variant trained with one seed. ``bits_per_pixel`` of the clips it was scored on, ``values`` by measure."""

    variant: str
    seed: int
    steps: int
    parameters: int
    bits_per_pixel: float
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Does a variant stand to the reference as in the paper?

    ``paper`` and ``ours`` are reference minus variant, ours as the mean over the seeds that both have, which show both
    the same clips; ``spread`` is the standard deviation of these differences, None for a single seed. ``holds``: None
    where the difference is no larger than its spread, so that the order is open.
    """

    measure: str
    paper: float
    ours: float
    spread: float | None
    holds: bool | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant in the table, with or without runs yet."""

    variant: str
    label: str
    note: str
    paper: Mapping[str, tuple[float, ...]]
    runs: tuple[VariantRun, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def bits_per_pixel(self) -> float | None:
        return self.runs[0].bits_per_pixel if self.runs else None

    def summary(self, measure: str) -> tuple[float, float | None] | None:
        """Mean over seeds, and their standard deviation where there are several; None where nothing was measured."""
        return over_seeds([run.values[measure] for run in self.runs if measure in run.values])


@dataclass(frozen=True, kw_only=True)
class AblationRecord:
    """One table. ``clips``: the held-out clips of the reconstruction; ``held_out``: how they were chosen."""

    name: str
    title: str
    reference: str
    protocol: AblationProtocol
    clips: tuple[str, ...]
    held_out: str
    seeds: int
    rows: tuple[Row, ...]

    @property
    def rate_gaps(self) -> dict[str, float]:
        """By how much of it the rate of each trained row differs from that of the reference."""
        rates = {row.variant: row.bits_per_pixel for row in self.rows}
        base = rates[self.reference]
        return {name: rate / base - 1 for name, rate in rates.items() if rate is not None} if base else {}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        rows = []
        for row in self.rows:
            found = {name: row.summary(name) for name in MEASURES}
            summary = {name: {"mean": pair[0], "spread": pair[1]} for name, pair in found.items() if pair}
            rows.append(asdict(row) | {"bits_per_pixel": row.bits_per_pixel, "summary": summary})
        return {
            "ablation": self.name,
            "title": self.title,
            "reference": self.reference,
            "protocol": self.protocol.to_dict(),
            "versions": versions(),
            "clips": list(self.clips),
            "held_out": self.held_out,
            "seeds": self.seeds,
            "rows": rows,
        }


def measure_variant(
    tokenizer: VideoTokenizer,
    clips: Sequence[Path],
    scenes: Callable[[SceneConfig], CaptionedScenes],
    protocol: AblationProtocol,
    perceptual: PerceptualLoss,
    on_step: Callable[[str], None] = lambda name: None,
) -> tuple[float, dict[str, float]]:
    """Bits per pixel and every measure of a tokenizer in evaluation mode, all its levels used.

    ``clips`` are for reconstruction, ``scenes`` makes the rendered ones for language.
    """
    on_step("reconstruction")
    whole = [tokenizer.num_levels]
    mean = evaluate_reconstruction(tokenizer, clips, protocol.reconstruction, levels=whole).mean[0]
    values = {"psnr": mean.psnr, "ssim": mean.ssim}
    values["perceptual"] = perceptual_distance(tokenizer, clips, protocol.reconstruction, perceptual)
    for score in evaluate_language(tokenizer, scenes, protocol.language, on_step).scores:
        if (score.name, score.nouns) in _SCORES:
            values[_SCORES[score.name, score.nouns]] = score.value
    return mean.bits_per_pixel, values


@torch.no_grad()
def perceptual_distance(
    tokenizer: VideoTokenizer, clips: Sequence[Path], protocol: EvalProtocol, perceptual: PerceptualLoss
) -> float:
    """Mean distance of what is decoded, per frame, then over clips."""
    distances = []
    for path in clips:
        video = load_clip(path, protocol)
        back = tokenizer.decode(tokenizer.encode(video, protocol.caption)).to(video.device)
        distances.append(float(perceptual.per_frame(back.as_subclass(Tensor), video.plain()).mean()))
    return statistics.fmean(distances)


def tabulate(outlines: Mapping[str, Outline], reference: str, runs: Sequence[VariantRun]) -> tuple[Row, ...]:
    """A row per outline, in that order, with its runs by seed and its verdicts against ``reference``."""
    by_variant = {name: sorted((r for r in runs if r.variant == name), key=lambda r: r.seed) for name in outlines}
    base, base_paper = by_variant[reference], outlines[reference].paper
    return tuple(
        Row(
            variant=name,
            label=outline.label,
            note=outline.note,
            paper=dict(outline.paper),
            runs=tuple(by_variant[name]),
            verdicts=() if name == reference else tuple(_verdicts(outline.paper, base_paper, by_variant[name], base)),
        )
        for name, outline in outlines.items()
    )


def _verdicts(
    paper: Mapping[str, tuple[float, ...]],
    base_paper: Mapping[str, tuple[float, ...]],
    runs: Sequence[VariantRun],
    base: Sequence[VariantRun],
) -> list[Verdict]:
    by_seed = {run.seed: run for run in base}
    pairs = [(by_seed[run.seed], run) for run in runs if run.seed in by_seed]
    found = []
    for name in MEASURES:
        if not pairs or name not in paper or name not in base_paper:
            continue
        # Over all columns of the paper: in several rows two of them are swapped, which a mean does not notice.
        theirs = statistics.fmean(base_paper[name]) - statistics.fmean(paper[name])
        differences = [one.values[name] - other.values[name] for one, other in pairs]
        ours, spread = statistics.fmean(differences), _deviation(differences)
        decided = abs(ours) > (spread or 0.0)
        found.append(
            Verdict(measure=name, paper=theirs, ours=ours, spread=spread, holds=ours * theirs > 0 if decided else None)
        )
    return found


def over_seeds(values: Sequence[float]) -> tuple[float, float | None] | None:
    """Mean, and the standard deviation where there are several; None of nothing."""
    return (statistics.fmean(values), _deviation(values)) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
