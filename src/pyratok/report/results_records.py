"""Result records, as the commands write them, read back into one type for all their shapes.

| written by | told by |
|---|---|
| ``evaluate NAME`` of a benchmark (``--out``, ``--json``) | ``scores``, a mapping |
| ``evaluate language`` | ``scores``, a list |
| ``evaluate reconstruction`` | ``mean``, a score per level prefix |
| ``evaluate codebook-usage`` | ``usage`` |
| ``evaluate predictability`` | ``levels`` |
| ``ablate`` | ``ablation`` |
| ``segment``, ``localize`` and their like (``--json``) | ``input`` and ``output``: a picture |
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pyratok.report.results_measures import Measure, describe

MEASURED = ("prior", "shards")
"""Fields of a protocol that say who was measured."""
RECORD = "record.json"
"""The result in the folder of a run; other files there are not results."""


class ResultError(ValueError):
    """A file that holds no result, and why."""


class Value(NamedTuple):
    """``spread``: standard deviation over seeds, where there were several."""

    mean: float
    spread: float | None = None


Cells = dict[Measure, dict[str, Value]]
"""By measure, then by who reached it: "" is the model, " with crf" a variant of it, anything else a baseline."""
Curve = tuple[Mapping[str, float], ...]
"""Points with ``bits_per_pixel`` and a quality by name."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One record. ``items``: how many were found, missing and so on; ``missing``: their names; ``notes``: sentences
    about the numbers; ``bits``: shares of +1 of every bit, by level; ``paper``: numbers that the record itself has of
    the paper; ``headline``: key of the measure that stands for them all, by default the first that is no rate.
    Ablations have a method per variant, and no model."""

    path: Path
    benchmark: str
    protocol: Mapping[str, Any]
    digest: str
    model: str
    fingerprint: str = ""
    weights: str = ""
    versions: Mapping[str, str]
    cells: Cells
    items: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    bits: Mapping[str, Sequence[float]] = field(default_factory=dict)
    paper: Cells = field(default_factory=dict)
    headline: str = ""

    @property
    def rules(self) -> Mapping[str, Any]:
        """What results have to have in common to be compared: the protocol but for what is measured by it."""
        return {name: value for name, value in self.protocol.items() if name not in MEASURED}

    @property
    def measured(self) -> str:
        """Digest of what was measured: of a prior, or of the model's weights."""
        return str(self.protocol.get("prior", "")) or self.weights

    @property
    def is_ablation(self) -> bool:
        return self.benchmark.startswith("ablation")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a command drew of ``source``; ``caption``: what it was asked for."""

    path: Path
    source: str
    caption: str
    model: str


def read_results(paths: Iterable[Path]) -> tuple[list[Result], list[Picture]]:
    """The records of files and folders, in their order and each once, however often it was written.

    A folder that holds a ``record.json`` gives that; another its own JSON files, and every ``record.json`` below.
    Raises :class:`ResultError` for a file that is not there, is damaged or no record, and for a folder without any.
    """
    results: list[Result] = []
    pictures: list[Picture] = []
    seen: set[str] = set()
    for file in (file for path in paths for file in _files(path)):
        document = _load(file)
        text = json.dumps(document, sort_keys=True)
        if text not in seen:
            seen.add(text)
            found = _parse(file, document)
            (results if isinstance(found, Result) else pictures).append(found)  # type: ignore[arg-type]
    return results, pictures


def digest_of(protocol: Mapping[str, Any]) -> str:
    """The hash that a protocol of these fields has."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (path / RECORD).is_file():
        return [path / RECORD]
    found = sorted({*path.glob("*.json"), *path.rglob(RECORD)})
    if not found:
        raise ResultError(f"{path}: there is no result in this folder; name what `pyratok evaluate --json` wrote")
    return found


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise ResultError(f"{path}: this is no JSON, or a damaged one") from None


def _parse(path: Path, document: Any) -> Result | Picture:
    kind = next((parse for tells, parse in _KINDS if isinstance(document, dict) and tells(document)), None)
    if kind is None:
        raise ResultError(
            f"{path}: this is no result; a report is made of what `pyratok evaluate` and `pyratok ablate` write "
            "(record.json in --out, or --json), and of the JSON of commands that draw"
        )
    try:
        return kind(path, document)
    except ResultError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(f"{path}: a damaged result ({type(error).__name__}: {error})") from None


# -------------------------------------------------------------------------------------------------------- the shapes


def _shared(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """What all records have."""
    protocol = dict(document["protocol"])
    stored = protocol.pop("digest", None)
    digest = digest_of(protocol)
    if stored not in (None, digest):
        raise ResultError(f"{path}: the protocol's hash is {stored}, that of its fields {digest}; it was changed")
    model = document.get("model") or {}
    return {
        "path": path,
        "benchmark": str(protocol["benchmark"]),
        "protocol": protocol,
        "digest": digest,
        "model": str(model.get("name", "no model")),
        "fingerprint": str(model.get("fingerprint", "")),
        "versions": {str(name): str(text) for name, text in document["versions"].items()},
    }


def _benchmark(path: Path, document: Mapping[str, Any]) -> Result:
    cells: Cells = {}
    for key, number in document["scores"].items():
        name, _, method = key.partition(", ")
        # of the rendered benchmark: "tokens" and "tokens with crf" are the model's, "blind" is its reader alone
        own = method.removeprefix("tokens") if method != "blind" else " blind"
        _put(cells, describe(name), own, number)
    items, details = document["items"], document["details"]
    notes = [str(details["note"])] if "note" in details else []
    notes += [
        f"No BD-rate to {key.removeprefix('no_bd_rate_to_').replace('_', ' ')}: {text}."
        for key, text in details.items()
        if key.startswith("no_bd_rate_to_")
    ]
    if items["limit"] is not None:
        notes.append(f"At most {items['limit']:,} items were asked for, drawn at random.")
    annotations = document["annotations"]
    expected = annotations["expected"]
    if found := {k: annotations["counts"].get(k, 0) for k, n in expected.items() if annotations["counts"].get(k) != n}:
        said = ", ".join(f"{count:,} {key} where {expected[key]:,} are distributed" for key, count in found.items())
        notes.append(f"The annotations are another revision, or a part: {said}.")
    return Result(
        **_shared(path, document),
        weights=str(document["weights"] or ""),
        cells=cells,
        items={f"items {name}": int(items[name]) for name in ("found", "missing", "unreadable", "scored")},
        missing=(*map(str, document["missing"]), *(f"{name}: {why}" for name, why in document["unreadable"].items())),
        notes=tuple(notes),
        curves={str(name): tuple(points) for name, points in details.get("curves", {}).items()},
    )


def _language(path: Path, document: Mapping[str, Any]) -> Result:
    cells: Cells = {}
    for score in document["scores"]:
        key = f"{score['name']}, {score['nouns']} nouns"
        measure = Measure(key, f"{key}, %", 1, 100)
        _put(cells, measure, "", score["value"])
        for name, number in score["baselines"].items():
            _put(cells, measure, str(name), number)
    asked = sum(int(score["count"]) for score in document["scores"])
    return Result(**_shared(path, document), cells=cells, items={"questions asked": asked})


def _reconstruction(path: Path, document: Mapping[str, Any]) -> Result:
    cells: Cells = {}
    prefixes = document["mean"]
    for name in ("bits_per_pixel", "psnr", "ssim"):
        for prefix in prefixes:
            levels = "1 level" if prefix["levels"] == 1 else f"{prefix['levels']} levels"
            measure = describe(name).of(levels)
            _put(cells, measure, "", prefix[name])
            if name == "psnr":
                _put(cells, measure, "x265 at this rate", prefix["x265_psnr"])
    whole = list(cells)[2 * len(prefixes) - 1]
    curves: dict[str, Curve] = {"pyra": tuple(prefixes)}
    if anchors := [{**prefix, "psnr": prefix["x265_psnr"]} for prefix in prefixes if prefix["x265_psnr"] is not None]:
        curves["x265"] = tuple({k: p[k] for k in ("bits_per_pixel", "psnr")} for p in anchors)
    return Result(
        **_shared(path, document),
        cells=cells,
        items={"clips": len(document["clips"])},
        curves=curves,
        headline=whole.key,
    )


def _usage(path: Path, document: Mapping[str, Any]) -> Result:
    cells: Cells = {}
    usage = document["usage"]
    named = {f"level {i}": level for i, level in enumerate(usage["levels"], 1)} | {"all levels": usage["pooled"]}
    kinds = {
        "share": Measure("share", "words used, %", 2, 100),
        "perplexity": Measure("perplexity", "perplexity", 0),
        "dead_bits": Measure("dead_bits", "dead bits", 0),
        "tokens": Measure("tokens", "tokens seen", 0),
    }
    for key, measure in kinds.items():
        for name, level in named.items():
            number = len(level[key]) if key == "dead_bits" else level[key]
            _put(cells, measure.of(name), "", number)
    bits = {name: [float(mean) for mean in level["bit_means"]] for name, level in named.items()}
    return Result(**_shared(path, document), cells=cells, items={"clips": int(document["clips"])}, bits=bits)


def _predictability(path: Path, document: Mapping[str, Any]) -> Result:
    cells: Cells = {}
    for level in document["levels"]:
        numbers = {
            **{f"after {name}": number for name, number in level["predicted"].items()},
            "words counted": level["unigram"],
            "bits counted": level["independent"],
        }
        for name, number in numbers.items():
            key = f"level {level['level']}, {name}, {document['nouns']} nouns"
            _put(cells, Measure(key, f"bits per token, {key}", 3), "", number)
    return Result(**_shared(path, document), cells=cells)


def _ablation(path: Path, document: Mapping[str, Any]) -> Result:
    from pyratok.eval.ablation import MEASURES

    cells: Cells = {}
    paper: Cells = {}
    rate = describe("bits_per_pixel")
    for row in document["rows"]:
        label = str(row["label"])
        if row["bits_per_pixel"] is not None:
            _put(cells, rate, label, row["bits_per_pixel"])
        for key, measure in MEASURES.items():
            unit = Measure(key, measure.label, measure.digits, 100 if measure.share else 1)
            if key in row["summary"]:
                _put(cells, unit, label, row["summary"][key]["mean"], row["summary"][key]["spread"])
            names = measure.paper.split(" / ")
            first, comma, rest = names[0].partition(", ")
            names = [f"{first}, {name}" for name in (rest, *names[1:])] if comma else names
            for name, number in zip(names, row["paper"].get(key, ()), strict=False):
                _put(paper, Measure(name, name, 3 if "PSNR" not in name and comma else 2), label, number)
    about = {**_shared(path, document), "benchmark": f"ablation: {document['ablation']}", "model": "no model"}
    note = f"{document['title']}. Held against: {document['reference']}. Mean over up to {document['seeds']} seeds."
    return Result(**about, cells=cells, paper=paper, items={"clips": len(document["clips"])}, notes=(note,))


def _picture(path: Path, document: Mapping[str, Any]) -> Picture:
    named = Path(str(document["output"]))
    there = next((place for place in (named, path.parent / named, path.parent / named.name) if place.is_file()), None)
    if there is None:
        raise ResultError(f"{path}: the picture that it names, {named}, is not there; put it beside the JSON")
    asked = [str(one.get("word") or one.get("query")) for key in ("words", "steps") for one in document.get(key, ())]
    return Picture(
        path=there,
        source=Path(str(document["input"])).name,
        caption=", ".join(asked),
        model=str(document["model"]["name"]),
    )


_KINDS: tuple[
    tuple[Callable[[Mapping[str, Any]], bool], Callable[[Path, Mapping[str, Any]], Result | Picture]], ...
] = (
    (lambda d: "protocol" in d and "ablation" in d, _ablation),
    (lambda d: "protocol" in d and isinstance(d.get("scores"), dict) and "items" in d, _benchmark),
    (lambda d: "protocol" in d and isinstance(d.get("scores"), list), _language),
    (lambda d: "protocol" in d and "mean" in d, _reconstruction),
    (lambda d: "protocol" in d and "usage" in d, _usage),
    (lambda d: "protocol" in d and "levels" in d, _predictability),
    (lambda d: d.get("output") is not None and "input" in d and "model" in d, _picture),
)


def _put(cells: Cells, measure: Measure, method: str, number: Any, spread: Any = None) -> None:
    """A number where there is one; null, and what is not finite, leave no trace but the row."""
    row = cells.setdefault(measure, {})
    if number is not None and math.isfinite(float(number)):
        row[method] = Value(float(number), None if spread is None else float(spread))
