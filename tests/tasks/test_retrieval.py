"""An index of a folder of tokens: what it finds, what it keeps, what it refuses."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from planted_colours import ColourTokenizer, coloured
from pyratok.codec.container import PyraWriter, save_tokens
from pyratok.data.manifests import LeftOutWarning
from pyratok.model.base import VideoTokenizer
from pyratok.tasks import retrieval
from pyratok.tasks.classification import clip_vectors
from pyratok.tasks.retrieval import INDEX_FILE, Index, build_index, head_digest, open_index
from pyratok.types import ModelId, TokenPyramid
from tiny import tiny_pyratok


@pytest.fixture
def model() -> ColourTokenizer:
    return ColourTokenizer()


def clip(model: VideoTokenizer, *runs: tuple[str, int], fps: float | None = 10.0) -> TokenPyramid:
    return model.encode(coloured(*runs, fps=fps))


@pytest.fixture
def folder(tmp_path: Path, model: ColourTokenizer) -> Path:
    """Three clips of half a second, and one of 40 that is green for seconds 20.1 to 30.1."""
    home = tmp_path / "clips"
    (home / "more").mkdir(parents=True)
    for name in ("red", "blue"):
        save_tokens(clip(model, (name, 5)), home / f"{name}.pyra")
    save_tokens(clip(model, ("white", 5)), home / "more" / "white.pyra")
    save_tokens(clip(model, ("blue", 201), ("green", 100), ("blue", 100)), home / "long.pyra")
    return home


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose levels were read, in order."""
    names: list[str] = []
    rows = retrieval._rows

    def spy(model, reader, stretch):  # type: ignore[no-untyped-def]
        names.append(reader.path.name)
        return rows(model, reader, stretch)

    monkeypatch.setattr(retrieval, "_rows", spy)
    return names


def same(a: Index, b: Index) -> bool:
    return retrieval._facts(a) == retrieval._facts(b) and torch.equal(a.vectors, b.vectors)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def test_texts_and_vectors_find_clips(model: ColourTokenizer, folder: Path) -> None:
    index = build_index(model, folder)
    assert len(index) == len(index.paths) == 4
    for name in ("red", "white"):
        hits = index.search(f"a {name} thing", model=model)
        assert len(hits) == 4
        assert hits[0].path == next(folder.rglob(f"{name}.pyra"))
        assert hits[0].score > 0.99
        assert (hits[0].start, hits[0].end) == (0.0, 0.5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert hits[:2] == index.search(f"a {name} thing", 2, model=model)
    (hit,) = index.search(7 * clip_vectors(model, clip(model, ("blue", 9)))[0], k=1)
    assert hit.path.name in ("blue.pyra", "long.pyra")


def test_a_long_clip_is_found_by_a_stretch_of_it(model: ColourTokenizer, folder: Path) -> None:
    (hit,) = build_index(model, folder).search("green", 1, model=model)
    assert hit.path.name == "long.pyra"
    assert (hit.start, hit.end) == (pytest.approx(20.1, abs=0.5), pytest.approx(30.1, abs=0.5))
    assert hit.score > 0.9
    whole = build_index(model, folder, stretch=None)
    (hit,) = [hit for hit in whole.search("green", model=model) if hit.path.name == "long.pyra"]
    assert (hit.start, hit.end) == (0.0, pytest.approx(40.1))
    assert hit.score < 0.5


def test_rows_are_the_vectors_of_whole_clips(model: ColourTokenizer, folder: Path) -> None:
    index = build_index(model, folder, stretch=None)
    assert [entry.name for entry in index.clips] == ["blue.pyra", "long.pyra", "more/white.pyra", "red.pyra"]
    wanted = [clip_vectors(model, clip(model, (name, 5)))[0] for name in ("blue", "white", "red")]
    torch.testing.assert_close(index.vectors[[0, 2, 3]], torch.stack(wanted))
    torch.testing.assert_close(index.vectors.norm(dim=1), torch.ones(4))


def test_stretches_cover_the_clip_without_gaps(model: ColourTokenizer, folder: Path) -> None:
    index = build_index(model, folder, stretch=7)
    times = next(entry.times for entry in index.clips if entry.name == "long.pyra")
    (whole, *stretches) = [pair for pair in times if pair is not None]
    assert len(stretches) == 6
    assert (stretches[0][0], stretches[-1][1]) == whole == (0.0, pytest.approx(40.1))
    assert all(before[1] == after[0] for before, after in pairwise(stretches))


def test_without_a_frame_rate_there_are_no_times(model: ColourTokenizer, tmp_path: Path) -> None:
    save_tokens(clip(model, ("red", 300), fps=None), tmp_path / "a.pyra")
    index = build_index(model, tmp_path)
    assert len(index.vectors) == 1
    assert index.search("red", model=model)[0][2:] == (None, None)


def test_growing_files_are_indexed_as_far_as_they_go(model: ColourTokenizer, tmp_path: Path) -> None:
    tokens = clip(model, ("red", 201), ("blue", 200))
    with PyraWriter(tmp_path / "a.pyra", segment_steps=10) as file:
        file.append(tokens.time_slice(0, 51))
        file.append(tokens.time_slice(51, 101))
        early = build_index(model, tmp_path, stretch=None)
    late = build_index(model, tmp_path, known=early, stretch=None)
    assert early.search("blue", model=model)[0].score < late.search("blue", model=model)[0].score
    assert late.clips[0].times[0] == (0.0, pytest.approx(40.1))


def test_saved_and_loaded_it_is_the_same(model: ColourTokenizer, folder: Path) -> None:
    index = build_index(model, folder)
    index.save(folder / "index")
    assert same(Index.load(folder / "index"), index)
    first = (folder / "index").read_bytes()
    index.save(folder / "index")
    assert (folder / "index").read_bytes() == first
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_an_index_moves_with_its_folder(model: ColourTokenizer, folder: Path, tmp_path: Path) -> None:
    build_index(model, folder).save(folder / "index")
    shutil.move(folder, tmp_path / "elsewhere")
    (hit,) = Index.load(tmp_path / "elsewhere" / "index").search("red", 1, model=model)
    assert hit.path == tmp_path / "elsewhere" / "red.pyra"
    assert hit.path.is_file()


def test_only_what_changed_is_read_again(model: ColourTokenizer, folder: Path, read_files: list[str]) -> None:
    index = build_index(model, folder)
    assert read_files == ["blue.pyra", "long.pyra", "white.pyra", "red.pyra"]
    read_files.clear()
    assert same(build_index(model, folder, known=index), index)
    assert read_files == []

    touch(folder / "red.pyra")  # another time, the same tokens
    (folder / "blue.pyra").unlink()
    save_tokens(clip(model, ("green", 5)), folder / "more" / "white.pyra")
    save_tokens(clip(model, ("green", 5)), folder / "new.pyra")
    changed = build_index(model, folder, known=index)
    assert read_files == ["white.pyra", "new.pyra"]
    assert same(changed, build_index(model, folder))
    assert [entry.modified for entry in changed.clips if entry.name == "red.pyra"] == [1]


@pytest.mark.parametrize("stretch", [5.0, None])
def test_other_stretches_take_nothing_over(
    model: ColourTokenizer, folder: Path, read_files: list[str], stretch: float | None
) -> None:
    known, plain = build_index(model, folder), build_index(model, folder, stretch=stretch)
    read_files.clear()
    assert same(build_index(model, folder, known=known, stretch=stretch), plain)
    assert len(read_files) == 4


def test_a_head_that_was_trained_further_is_noticed(
    model: ColourTokenizer, folder: Path, read_files: list[str]
) -> None:
    """The text head is no part of the fingerprint."""
    index, further = build_index(model, folder), ColourTokenizer(gain=2.0)
    assert further.model_id.fingerprint == model.model_id.fingerprint
    with pytest.raises(ValueError, match="made with another text head"):
        index.search("red", model=further)
    read_files.clear()
    anew = build_index(further, folder, known=index)
    assert len(read_files) == 4
    assert anew.search("red", 1, model=further)[0].path == folder / "red.pyra"


def test_the_digest_of_a_head_does_not_change_with_its_type() -> None:
    model = ColourTokenizer(gain=0.3)
    digest = head_digest(model)
    assert digest != head_digest(ColourTokenizer(gain=0.4))
    assert head_digest(model.bfloat16()) == digest


def test_another_model_is_refused(model: ColourTokenizer, folder: Path, tmp_path: Path) -> None:
    index = replace(build_index(model, folder), model=ModelId(name="other", fingerprint="0123abcd"))
    complaint = r"tokens made by other \(0123abcd\), this model is fake"
    with pytest.raises(ValueError, match=complaint):
        index.search("red", model=model)
    with pytest.raises(ValueError, match=complaint):
        build_index(model, folder, known=index)
    index.save(tmp_path / "index")
    before = (tmp_path / "index").read_bytes()
    with pytest.raises(ValueError, match=complaint):
        open_index(model, folder, file=tmp_path / "index")
    assert (tmp_path / "index").read_bytes() == before


def test_damaged_and_foreign_files_are_left_out_and_listed(model: ColourTokenizer, folder: Path) -> None:
    tokens = clip(model, ("red", 5))
    (folder / "text.pyra").write_text("no tokens")
    data = bytearray((folder / "blue.pyra").read_bytes())
    data[-1] ^= 1
    (folder / "blue.pyra").write_bytes(data)
    save_tokens(tokens.prefix(2), folder / "prefix.pyra")
    (folder / ".hidden.pyra").write_text("left alone")
    with pytest.warns(LeftOutWarning) as caught:
        index = build_index(model, folder)
    causes = {Path(path).name: cause for path, cause in caught[0].message.causes.items()}  # type: ignore[union-attr]
    assert causes.keys() == {"text.pyra", "blue.pyra", "prefix.pyra"}
    assert causes["prefix.pyra"] == "holds 2 of 3 levels; encode it with all of them"
    assert "damaged" in causes["blue.pyra"]
    assert [path.name for path in index.paths] == ["long.pyra", "white.pyra", "red.pyra"]


def test_files_of_another_model_and_of_several_clips_are_left_out(model: ColourTokenizer, folder: Path) -> None:
    other = tiny_pyratok()
    save_tokens(other.encode(coloured(("red", 5))), folder / "other.pyra")
    save_tokens(model.encode(coloured(("red", 5)).plain().repeat(2, 1, 1, 1, 1)), folder / "two.pyra")
    with pytest.warns(LeftOutWarning, match=r"made by tiny \((.|\n)*holds 2 clips; save each of them"):
        assert len(build_index(model, folder)) == 4
    shutil.rmtree(folder / "more")
    for path in folder.glob("*.pyra"):
        path.unlink()
    save_tokens(other.encode(coloured(("red", 5))), folder / "other.pyra")
    with pytest.raises(ValueError, match=r"1 of 1 files in .* cannot be used"):
        build_index(model, folder)


def test_progress_is_told(model: ColourTokenizer, folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build_index(model, folder, on_file=lambda path, number, total: told.append((path.name, number, total)))
    assert told == [("blue.pyra", 1, 4), ("long.pyra", 2, 4), ("white.pyra", 3, 4), ("red.pyra", 4, 4)]


def test_the_index_of_a_folder_is_kept_in_it(model: ColourTokenizer, folder: Path, read_files: list[str]) -> None:
    index = open_index(model, folder)
    written = (folder / INDEX_FILE).stat().st_mtime_ns
    read_files.clear()
    assert same(open_index(model, folder), index)
    assert read_files == []
    assert (folder / INDEX_FILE).stat().st_mtime_ns == written
    save_tokens(clip(model, ("green", 5)), folder / "new.pyra")
    assert len(open_index(model, folder)) == len(Index.load(folder / INDEX_FILE)) == 5
    assert read_files == ["new.pyra"]


@pytest.mark.parametrize("position", [20, 300, -1])
def test_a_damaged_index_is_refused(model: ColourTokenizer, folder: Path, position: int) -> None:
    open_index(model, folder)
    data = bytearray((folder / INDEX_FILE).read_bytes())
    data[position] ^= 1
    (folder / INDEX_FILE).write_bytes(data)
    with pytest.raises(ValueError, match="is no index that this version can read"):
        open_index(model, folder)


def test_what_is_no_index_is_refused_and_not_written_over(model: ColourTokenizer, folder: Path) -> None:
    for content in (b"", b"some text that is long enough to be taken for a header"):
        (folder / "file").write_bytes(content)
        with pytest.raises(ValueError, match="is no index"):
            open_index(model, folder, file=folder / "file")
        assert (folder / "file").read_bytes() == content
    save_file({"vectors": torch.zeros(1, 3)}, folder / "file")
    with pytest.raises(ValueError, match="is no index"):
        Index.load(folder / "file")
    with pytest.raises(FileNotFoundError):
        Index.load(folder / "nothing")


def test_bad_questions_are_refused(model: ColourTokenizer, folder: Path) -> None:
    index = build_index(model, folder)
    with pytest.raises(ValueError, match="got k = 0"):
        index.search("red", 0, model=model)
    with pytest.raises(ValueError, match="query 1 has no letters"):
        index.search(" ", model=model)
    with pytest.raises(ValueError, match="give the model that is to embed it"):
        index.search("red")
    with pytest.raises(ValueError, match=r"a vector \[3\] as this index holds, got \[4\]"):
        index.search(torch.ones(4))
    for vector in (torch.zeros(3), torch.tensor([1.0, 2.0, torch.nan])):
        with pytest.raises(ValueError, match="finite numbers, and not zeros alone"):
            index.search(vector)


def test_bad_folders_and_settings_are_refused(model: ColourTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.pyra files in"):
        build_index(model, tmp_path)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        build_index(model, tmp_path / "nowhere")
    for stretch in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a positive number of seconds"):
            build_index(model, tmp_path, stretch=stretch)


def test_tokens_without_language_cannot_be_indexed(tmp_path: Path) -> None:
    model = tiny_pyratok()
    save_tokens(clip(model, ("red", 5)), tmp_path / "a.pyra")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="has no text head"):
        build_index(model, tmp_path)
