"""The runner, on a benchmark of numbers: resumed as if never killed, in one process as in several."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fakes import FakeTokenizer
from pyratok.data.video_io import VideoError
from pyratok.eval import runner
from pyratok.eval.benchmarks.contract import Answer, Benchmark, BenchmarkProtocol, Item, Loaded, Scores, first_of
from pyratok.eval.benchmarks.registry import ENTRIES, Options, build
from pyratok.eval.runner import run_benchmark


@dataclass(frozen=True, kw_only=True)
class NumbersProtocol(BenchmarkProtocol):
    benchmark: str = "ytvis21"  # one that the registry knows, for its errors
    power: int = 2
    share: float = 0.5
    word: str = "x"


@dataclass(frozen=True, kw_only=True)
class Numbers(Benchmark[Item]):
    """The item "7" is answered 49, a third of it as an inexact float beside it; "unreadable" items cannot be read."""

    protocol: NumbersProtocol
    count: int = 12
    expected: int = 12

    def load(self) -> Loaded[Item]:
        items = tuple(Item(key=str(i)) for i in range(self.count))
        return Loaded(
            items=items, missing=("lost",), counts={"numbers": self.count}, expected={"numbers": self.expected}
        )

    def run(self, model: object) -> Callable[[Item], Answer]:
        assert isinstance(model, FakeTokenizer)

        def answer(item: Item) -> Answer:
            if item.key == "5":
                raise VideoError("5.mp4: the file is empty")
            return {"power": int(item.key) ** self.protocol.power, "third": int(item.key) / 3}

        return answer

    def score(self, answers: Sequence[tuple[Item, Answer]]) -> Scores:
        return Scores(
            values={"sum": sum(said["third"] for _, said in answers)},
            details={"powers": [said["power"] for _, said in answers]},
        )

    def files(self, answers: Sequence[tuple[Item, Answer]]) -> Mapping[str, bytes]:
        return {"keys.txt": " ".join(item.key for item, _ in answers).encode()}


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def load_model() -> FakeTokenizer:
    return FakeTokenizer().eval()


def numbers(data: Path, **changes: int) -> Numbers:
    return Numbers(data=data, protocol=NumbersProtocol(), **changes)


def test_the_record_tells_what_was_done(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    record = run_benchmark(
        numbers(tmp_path), load_model, tmp_path / "out", on_progress=lambda done, total: heard.append((done, total))
    )
    assert heard == [(done, 12) for done in range(13)]
    assert record.scores.details["powers"] == [i * i for i in range(12) if i != 5]
    said = record.to_dict()
    assert said["items"] == {"found": 12, "missing": 1, "unreadable": 1, "scored": 11, "limit": None}
    assert said["missing"] == ["lost"]
    assert said["unreadable"] == {"5": "5.mp4: the file is empty"}
    assert said["model"]["fingerprint"] == load_model().model_id.fingerprint
    assert said["protocol"]["digest"] == NumbersProtocol().digest
    assert json.loads((tmp_path / "out" / "record.json").read_text()) == said
    assert (tmp_path / "out" / "keys.txt").read_text() == "0 1 2 3 4 6 7 8 9 10 11"


@pytest.mark.parametrize("after", [0, 1, 7, 11])
def test_a_killed_run_goes_on(tmp_path: Path, after: int) -> None:
    def kill(done: int, total: int) -> None:
        if done == after:
            raise Killed

    whole = run_benchmark(numbers(tmp_path), load_model, tmp_path / "whole")
    with pytest.raises(Killed):
        run_benchmark(numbers(tmp_path), load_model, tmp_path / "out", on_progress=kill)
    heard: list[int] = []
    again = run_benchmark(
        numbers(tmp_path), load_model, tmp_path / "out", on_progress=lambda done, total: heard.append(done)
    )
    assert heard == list(range(after, 13))
    assert again.to_dict() == whole.to_dict()


def test_half_a_line_is_asked_again(tmp_path: Path) -> None:
    whole = run_benchmark(numbers(tmp_path), load_model, tmp_path / "out")
    file = tmp_path / "out" / "answers-1-of-1.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    assert run_benchmark(numbers(tmp_path), load_model, tmp_path / "out") == whole
    assert len(file.read_bytes().splitlines()) == 12


def test_a_damaged_line_is_an_error(tmp_path: Path) -> None:
    run_benchmark(numbers(tmp_path), load_model, tmp_path / "out")
    file = tmp_path / "out" / "answers-1-of-1.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"key": "3"', b'"kex": "3"'))
    with pytest.raises(ValueError, match="line 4 is damaged; remove that line"):
        run_benchmark(numbers(tmp_path), load_model, tmp_path / "out")


def test_a_finished_run_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_benchmark(numbers(tmp_path), load_model, tmp_path / "out")
    monkeypatch.setattr(Numbers, "run", lambda self, model: pytest.fail("asked again"))
    assert run_benchmark(numbers(tmp_path), load_model, tmp_path / "out") == whole


def test_another_run_is_refused_in_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_benchmark(numbers(tmp_path), load_model, out)
    with pytest.raises(ValueError, match="another protocol; choose another --out"):
        run_benchmark(replace(numbers(tmp_path), protocol=NumbersProtocol(power=3)), load_model, out)
    other = load_model()
    other.unused.data += 1
    with pytest.raises(ValueError, match="another model and weights"):
        run_benchmark(numbers(tmp_path), lambda: other, out)


def test_limits_are_drawn_the_same_way_every_time(tmp_path: Path) -> None:
    items = [Item(key=str(i)) for i in range(50)]
    few, more = first_of(items, 5), first_of(items, 20)
    assert set(few) < set(more)
    assert list(more) == sorted(more, key=lambda item: int(item.key))
    assert first_of(items, None) == first_of(items, 50) == tuple(items)
    part = run_benchmark(numbers(tmp_path), load_model, tmp_path / "out", limit=4)
    assert part.scored + len(part.unreadable) == 4
    whole = run_benchmark(numbers(tmp_path), load_model, tmp_path / "out")
    assert whole.to_dict() == run_benchmark(numbers(tmp_path), load_model, tmp_path / "whole").to_dict()


def test_another_revision_is_refused_and_told(tmp_path: Path) -> None:
    other = numbers(tmp_path, expected=2985)
    with pytest.raises(ValueError, match=r"12 numbers where ytvis21 has 2,985.*youtube-vos.org.*--any-revision"):
        run_benchmark(other, load_model, tmp_path / "out")
    record = run_benchmark(other, load_model, tmp_path / "out", any_revision=True).to_dict()
    assert record["annotations"] == {"counts": {"numbers": 12}, "expected": {"numbers": 2985}}


def test_nothing_readable_and_keys_twice_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "load", lambda self: Loaded(items=(Item(key="5"),)))
    with pytest.raises(ValueError, match=r"none of 1 items can be read: 5\.mp4: the file is empty"):
        run_benchmark(numbers(tmp_path), load_model, tmp_path / "out")
    monkeypatch.setattr(Numbers, "load", lambda self: Loaded(items=(Item(key="1"), Item(key="1"))))
    with pytest.raises(ValueError, match="1 named more than once"):
        run_benchmark(numbers(tmp_path), load_model, tmp_path / "out")
    with pytest.raises(ValueError, match="at least 1, got 0 and None"):
        run_benchmark(numbers(tmp_path), load_model, tmp_path / "out", workers=0)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(ValueError, match="another run works in"):
            run_benchmark(numbers(tmp_path), load_model, tmp_path / "out")

    run_benchmark(numbers(tmp_path), load_model, tmp_path / "out", limit=2, on_progress=second)


@pytest.mark.slow
def test_several_processes_give_the_same_record(tmp_path: Path) -> None:
    whole = run_benchmark(numbers(tmp_path), load_model, tmp_path / "whole")
    shared = run_benchmark(numbers(tmp_path), load_model, tmp_path / "out", workers=2, limit=9)
    assert shared.scored + len(shared.unreadable) == 9
    assert len(list((tmp_path / "out").glob("answers-*-of-2.jsonl"))) == 2
    assert run_benchmark(numbers(tmp_path), load_model, tmp_path / "out").to_dict() == whole.to_dict()


def test_settings_are_checked(tmp_path: Path) -> None:
    options = Options(settings={"power": "3", "share": "1", "word": "true"})
    assert options.apply(NumbersProtocol()) == NumbersProtocol(power=3, share=1.0, word="true")
    with pytest.raises(ValueError, match="has no setting 'benchmark'; it has power, share, word"):
        Options(settings={"benchmark": "x"}).apply(NumbersProtocol())
    for name, text in (("power", "2.5"), ("power", "true"), ("share", "much")):
        with pytest.raises(ValueError, match=f"{name} is .* by default and takes the like"):
            Options(settings={name: text}).apply(NumbersProtocol())


def test_the_registry_builds_what_it_names(tmp_path: Path) -> None:
    for name in ENTRIES:
        benchmark = build(name, tmp_path)
        assert benchmark.name == name
        assert len(benchmark.protocol.digest) == 16
        with pytest.raises(ValueError, match=f"{name}|no videos or images"):
            benchmark.load()
    with pytest.raises(ValueError, match="no benchmark 'nonsense'; there are ytvis21"):
        build("nonsense", tmp_path)
    with pytest.raises(ValueError, match=r"no such folder; coco needs val2017.*cocodataset"):
        build("coco", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="coco uses no network i3d; those that it can use: lpips"):
        build("coco", tmp_path, Options(networks={"i3d": tmp_path}))


def test_benchmarks_are_sent_without_what_they_read(tmp_path: Path) -> None:
    benchmark = numbers(tmp_path)
    benchmark.__dict__["_document"] = "large"
    assert set(benchmark.__getstate__()) == {"data", "protocol", "count", "expected"}
    assert runner.UNREADABLE not in benchmark.__getstate__()
