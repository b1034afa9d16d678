"""The same prior on the words of several tokenizers: trained alike, and asked for the same clips.

```
OUT/NAME/shards/                 the clips of a world in the words of a tokenizer
OUT/NAME/seed-N/                 a prior that learns from them, as of ``pyratok train``
OUT/NAME/seed-N/world/           what it makes of the prompts, as of ``pyratok evaluate world``
OUT/NAME/seed-N/result.json      when that is done
```

Source: PyraTok (arXiv 2601.16210), sec. 4 and Table 2, where the tokenizers of published priors are swapped and these
go on learning. Here every prior begins anew, with equal settings, steps and clips, in equal order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pyratok.config import to_dict
from pyratok.data.rendering import MANIFEST
from pyratok.eval.ablation import over_seeds
from pyratok.eval.base import versions
from pyratok.eval.benchmarks.world import WorldBenchmark, WorldProtocol, with_prior
from pyratok.eval.runner import run_benchmark
from pyratok.files import alone_in
from pyratok.model.base import VideoTokenizer
from pyratok.model.pretrained import from_pretrained
from pyratok.recipes.compare import RESULT, load_result
from pyratok.runtime.tokenize import TokenizeConfig, tokenize_manifest
from pyratok.tasks.generation.files import load_prior
from pyratok.train.checkpoint import write_json
from pyratok.train.priors import RECORD, PriorRecipe, run_prior
from pyratok.vae.hub import read_json

SHARDS, ANSWERS = "shards", "world"


@dataclass(frozen=True, kw_only=True)
class SwapRun:
    """A prior on the words of one tokenizer, trained with one seed.

    ``tokens`` and ``bits``: of a clip, before anything is learned of them; ``held_out_bits``: what the prior needs for
    a clip that it was not trained on; ``values``: the scores of :mod:`pyratok.eval.benchmarks.world`.
    """

    tokenizer: str
    model: str
    seed: int
    steps: int
    parameters: int
    tokens: int
    bits: int
    held_out_bits: float
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class SwapRecord:
    """All runs so far, of ``seeds`` for each of ``tokenizers``."""

    recipe: str
    tokenizers: tuple[str, ...]
    seeds: int
    protocol: WorldProtocol
    runs: tuple[SwapRun, ...]

    @property
    def is_whole(self) -> bool:
        return len(self.runs) == self.seeds * len(self.tokenizers)

    def of(self, tokenizer: str) -> list[SwapRun]:
        return [run for run in self.runs if run.tokenizer == tokenizer]

    def summary(self, tokenizer: str, measure: str) -> tuple[float, float | None] | None:
        """Mean over seeds, and their standard deviation where there are several; None where nothing was measured."""
        return over_seeds([run.values[measure] for run in self.of(tokenizer) if measure in run.values])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "recipe": self.recipe,
            "tokenizers": list(self.tokenizers),
            "seeds": self.seeds,
            "protocol": self.protocol.to_dict(),
            "versions": versions(),
            "runs": [asdict(run) for run in self.runs],
        }


def run_swap(
    tokenizers: Mapping[str, str | None],
    world: Path,
    recipe: PriorRecipe,
    out: Path,
    *,
    seeds: int = 2,
    protocol: WorldProtocol | None = None,
    workers: int = 1,
    on_step: Callable[[str, int], None] = lambda name, total: None,
    on_progress: Callable[[int], None] = lambda done: None,
    on_record: Callable[[SwapRecord], None] = lambda record: None,
) -> SwapRecord:
    """A prior per tokenizer and seed, the first seed of all before the second of any; what is done is kept.

    ``tokenizers``: folders or hub ids by the names that the table has for them, None for the embedded model. ``world``:
    the folder of ``pyratok render``; its clips are trained on, its held-out combinations asked for. ``workers``:
    processes that tokenise and that answer prompts. ``on_step`` gets what begins and how much of it there is,
    ``on_progress`` how much is done. A run that is asked to stop (SIGTERM, SIGINT) saves where it is and ends; called
    again, this goes on from there.

    Raises ValueError for a world without clips, tokenizers that cannot be loaded, results in ``out`` that were made
    with other settings, and where another process works in ``out``.
    """
    if seeds < 1 or not tokenizers:
        raise ValueError(f"seeds and tokenizers must be at least 1, got {seeds} and {len(tokenizers)}")
    if not (world / MANIFEST).is_file():
        raise ValueError(f"{world}: no clips to train on; make them with pyratok render")
    protocol = protocol or WorldProtocol()
    done: list[SwapRun] = []

    def record() -> SwapRecord:
        return SwapRecord(
            recipe=recipe.name, tokenizers=tuple(tokenizers), seeds=seeds, protocol=protocol, runs=tuple(done)
        )

    models = {name: from_pretrained(source) for name, source in tokenizers.items()}
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        for seed in range(seeds):
            for name, source in tokenizers.items():
                swap = _Swap(name, source, models[name], world, replace(recipe, train=replace(recipe.train, seed=seed)))
                run = swap.run(out / name, protocol, workers, on_step, on_progress)
                if run is None:
                    return record()
                done.append(run)
                on_record(record())
    return record()


@dataclass(frozen=True, eq=False)
class _Swap:
    name: str
    source: str | None
    model: VideoTokenizer
    world: Path
    recipe: PriorRecipe

    def run(
        self,
        out: Path,
        protocol: WorldProtocol,
        workers: int,
        on_step: Callable[[str, int], None],
        on_progress: Callable[[int], None],
    ) -> SwapRun | None:
        """None where it was asked to stop."""
        seed, steps = self.recipe.train.seed, self.recipe.train.steps
        folder, shards = out / f"seed-{seed}", out / SHARDS
        origin = {
            "tokenizer": self.model.digest()[:16],
            "recipe": to_dict(self.recipe) | {"train": self.recipe.train.origin() | {"steps": steps}},
            "protocol": protocol.to_dict(),
        }
        if (kept := load_result(folder / RESULT, origin, SwapRun)) is not None:
            return kept
        on_step(f"{self.name}: tokens", 0)
        tokenize_manifest(
            self.model,
            self.world / MANIFEST,
            shards,
            TokenizeConfig(frames=protocol.frames, size=protocol.size),
            workers=workers,
            source=self.source,
        )
        on_step(f"{self.name}, seed {seed}: prior", steps)
        prior = run_prior(
            self.recipe,
            shards,
            folder,
            resume=(folder / "checkpoints").exists(),
            on_log=lambda record: on_progress(record["step"]),
        )
        if not (folder / RECORD).is_file():
            return None
        on_step(f"{self.name}, seed {seed}: prompts", protocol.prompts)
        benchmark = WorldBenchmark(data=self.world, protocol=protocol)
        scored = run_benchmark(
            with_prior(benchmark, {"prior": prior, "shards": shards}),
            partial(from_pretrained, self.source),
            folder / ANSWERS,
            workers=workers,
            on_progress=lambda done, total: on_progress(done),
        )
        run = self._result(folder, prior, scored.scores.values)
        write_json(folder / RESULT, {"origin": origin, "run": asdict(run)})
        return run

    def _result(self, folder: Path, prior: Path, values: Mapping[str, float]) -> SwapRun:
        learned = load_prior(prior)
        geometry = learned.config.geometry
        sizes = [math.prod(geometry.grid(level)) for level in range(learned.config.num_levels)]
        levels = read_json(folder / RECORD)["levels"]
        return SwapRun(
            tokenizer=self.name,
            model=str(self.model.model_id),
            seed=self.recipe.train.seed,
            steps=self.recipe.train.steps,
            parameters=sum(weight.numel() for weight in learned.parameters()),
            tokens=sum(sizes),
            bits=sum(sizes) * learned.config.num_bits,
            held_out_bits=sum(size * level["held_out_bits"] for size, level in zip(sizes, levels, strict=True)),
            values=dict(values),
        )
