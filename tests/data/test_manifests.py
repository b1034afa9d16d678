from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pyratok.data.manifests import LeftOutWarning, gather, kind_of, read_manifest, report_broken
from subprocesses import run_python


def photo(path: Path, channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8, channels), 90, np.uint8))
    return path


def video(path: Path) -> Path:
    """Named like one, which is all that gathering looks at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"frames")
    return path


def manifest(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos, a photograph and a sprite, in two levels."""
    video(tmp_path / "walk.mp4")
    video(tmp_path / "deep" / "run.MKV")
    photo(tmp_path / "deep" / "tree.jpg")
    photo(tmp_path / "cat.png", channels=4)
    return tmp_path


class TestFolders:
    def test_sorted_into_kinds(self, folder: Path) -> None:
        (folder / "notes.md").write_text("no media")
        media = gather([folder])
        assert [e.path for e in media.videos] == [folder / "deep" / "run.MKV", folder / "walk.mp4"]
        assert [e.path for e in media.photos] == [folder / "deep" / "tree.jpg"]
        assert [e.path for e in media.sprites] == [folder / "cat.png"]
        assert not any(e.caption for kind in (media.videos, media.photos, media.sprites) for e in kind)

    def test_captions_from_side_cars_and_manifests(self, folder: Path) -> None:
        (folder / "walk.txt").write_text(" a man walks\n")
        (folder / "cat.txt").write_text("side-car", encoding="utf-8")
        manifest(folder / "all.jsonl", [{"path": "deep/../cat.png", "caption": "eine Katze \N{CAT}\u2028!"}])
        media = gather([folder])
        assert {e.path.name: e.caption for e in (*media.videos, *media.sprites)} == {
            "walk.mp4": "a man walks",
            "run.MKV": "",
            "cat.png": "eine Katze \N{CAT}\u2028!",
        }

    def test_a_manifest_inside_adds_no_files(self, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        elsewhere = video(tmp_path_factory.mktemp("elsewhere") / "far.mp4")
        manifest(folder / "all.jsonl", [{"path": str(elsewhere), "caption": "far away"}])
        assert len(gather([folder]).videos) == 2

    def test_a_foreign_table_is_passed_over_with_a_warning(self, folder: Path) -> None:
        (folder / "measurements.csv").write_text("time,value\n1,2\n")
        with pytest.warns(UserWarning, match=r"passed over: 1 of 1 rows of .*measurements.csv cannot be used"):
            assert len(gather([folder]).videos) == 2

    def test_hidden_files_are_left_alone(self, folder: Path) -> None:
        video(folder / "._walk.mp4")
        video(folder / ".cache" / "clip.mp4")
        assert len(gather([folder]).videos) == 2

    def test_held_out_clips_are_left_out(self, folder: Path) -> None:
        media = gather([folder], exclude=("walk", "cat"))
        assert [e.path.name for e in media.videos] == ["run.MKV"]
        assert not media.sprites
        # A stem is a whole one.
        assert len(gather([folder], exclude=("wal", "walk.mp4")).videos) == 2

    def test_a_file_that_is_named_twice_counts_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = manifest(folder / "all.jsonl", [{"path": "walk.mp4"}, {"path": "./deep/../walk.mp4"}])
        monkeypatch.chdir(folder)
        media = gather([".", folder / "deep" / "..", folder / "walk.mp4", rows])
        assert [e.path.name for e in media.videos] == ["run.MKV", "walk.mp4"]

    def test_links_keep_their_name(self, folder: Path) -> None:
        """A hub cache links readable names to files named by their hash."""
        (folder / "linked.mp4").symlink_to(folder / "walk.mp4")
        assert "linked.mp4" in [e.path.name for e in gather([folder]).videos]

    def test_nothing_found(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no videos or images found in"):
            gather([tmp_path])
        with pytest.raises(ValueError, match="nowhere: no such file or folder"):
            gather([tmp_path / "nowhere"])


class TestManifests:
    def test_jsonl_and_csv_say_the_same(self, folder: Path) -> None:
        rows = [{"path": "walk.mp4", "caption": 'says "hi", twice'}, {"path": "deep/tree.jpg", "licence": "CC0"}]
        lines = manifest(folder / "a.jsonl", rows)
        lines.write_text(lines.read_text() + "\n  \n")
        table = folder / "a.csv"
        table.write_text('\ufeffpath,caption\nwalk.mp4,"says ""hi"", twice"\ndeep/tree.jpg\n', encoding="utf-8")
        assert read_manifest(lines) == read_manifest(table)
        assert gather([lines]) == gather([table])
        assert [e.caption for e in gather([table]).videos] == ['says "hi", twice']
        assert len(gather([table]).photos) == 1

    @pytest.mark.parametrize(
        "row",
        ["{", "[1]", '"walk.mp4"', "{}", '{"path": 3}', '{"path": ""}', "null"]
        + [f'{{"path": "x.mp4", "caption": {value}}}' for value in ("5", "0", "false", '["a", "b"]', '"\\ud800"')],
    )
    def test_broken_rows_are_left_out_and_named(self, folder: Path, row: str) -> None:
        path = folder / "a.jsonl"
        good = '{"path": "walk.mp4", "caption": "a man walks"}\n'
        path.write_text(good + row + "\n")
        with pytest.warns(UserWarning, match=r"1 of 2 rows of .*a.jsonl cannot be used:\n .*, row 2: no 'path' and"):
            assert [e.caption for e in gather([path]).videos] == ["a man walks"]
        path.write_text(f"{good}{row}\n{row}\n")
        with pytest.raises(ValueError, match=r"2 of 3 rows of .*a.jsonl cannot be used"):
            gather([path])

    @pytest.mark.parametrize("caption", ['""', '"  \\t "', "null"])
    def test_an_empty_caption_is_none(self, folder: Path, caption: str) -> None:
        (folder / "a.jsonl").write_text(f'{{"path": "walk.mp4", "caption": {caption}}}\n')
        assert [e.caption for e in gather([folder / "a.jsonl"]).videos] == [""]

    def test_a_second_row_of_a_file_does_not_take_its_caption_away(self, folder: Path) -> None:
        rows = [{"path": "walk.mp4", "caption": "a man walks"}, {"path": "walk.mp4"}, {"path": "gone.mp4"}]
        with pytest.warns(UserWarning, match="1 of 2 files named in"):
            media = gather([manifest(folder / "a.jsonl", rows)])
        assert [e.caption for e in media.videos] == ["a man walks"]

    def test_paths_that_lead_to_no_file(self, folder: Path) -> None:
        names = ["deep", "gone.mp4", "a\0b.mp4", "n" * 300 + ".mp4", "walk.mp4/x.mp4", str(folder / "loop.mp4")]
        (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
        good = [str(folder / name) for name in ("walk.mp4", "deep/run.MKV", "deep/tree.jpg", "cat.png")]
        more = [str(video(folder / f"{number}.mp4")) for number in range(2)]
        with pytest.warns(UserWarning, match="6 of 12 files named in") as seen:
            media = gather([manifest(folder / "a.jsonl", [{"path": name} for name in [*names, *good, *more]])])
        assert len(media.videos) == 4
        assert "deep: is a folder" in str(seen[0].message)

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"path,caption\n\x00,\xff"])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
    def test_what_is_no_text(self, folder: Path, name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: cannot be read as a manifest"):
            gather([folder / name])

    def test_missing_files_are_left_out_and_reported(self, folder: Path) -> None:
        path = manifest(folder / "a.jsonl", [{"path": name} for name in ("walk.mp4", "cat.png", "gone.mp4")])
        with pytest.warns(UserWarning, match=r"1 of 3 files named in .*a.jsonl cannot be used:\n .*gone.mp4: no such"):
            assert len(gather([path]).videos) == 1
        with pytest.raises(ValueError, match="2 of 3 files named in"):
            gather([manifest(folder / "a.jsonl", [{"path": name} for name in ("walk.mp4", "x.mp4", "y.mp4")])])


class TestBroken:
    def test_images_that_are_none_are_left_out_and_reported(self, folder: Path) -> None:
        (folder / "empty.jpg").touch()
        (folder / "text.png").write_text("no picture")
        (folder / "folder.png").mkdir()
        (folder / "lost.webp").symlink_to(folder / "nowhere.webp")
        with pytest.warns(UserWarning, match="left out: 3 of 7 files found cannot be used") as seen:
            media = gather([folder])
        assert (len(media.videos), len(media.photos), len(media.sprites)) == (2, 1, 1)
        message = str(seen[0].message)
        assert "empty.jpg: the file is empty" in message
        assert "text.png: neither a video nor an image" in message
        assert "lost.webp: no such file" in message

    def test_links_to_nothing_count_among_the_videos(self, folder: Path) -> None:
        (folder / "lost.mp4").symlink_to(folder / "nowhere.mp4")
        assert folder / "lost.mp4" in [e.path for e in gather([folder]).videos]

    def test_links_in_a_circle_end(self, folder: Path) -> None:
        (folder / "deep" / "again").symlink_to(folder)
        assert len(gather([folder]).videos) == 2

    def test_what_may_not_be_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As for a user without the rights: an image, a side-car, a manifest, a folder."""
        (folder / "walk.txt").write_text("a man walks")
        manifest(folder / "a.jsonl", [{"path": "walk.mp4", "caption": "walks"}])
        closed = {folder / "cat.png", folder / "walk.txt", folder / "a.jsonl"}
        usual, scan = Path.open, os.scandir

        def guarded(path: Path, *arguments: Any, **options: Any) -> Any:
            if path in closed:
                raise PermissionError(13, "Permission denied", str(path))
            return usual(path, *arguments, **options)

        def guarded_scan(path: Any) -> Any:
            if Path(path) == folder / "deep":
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(Path, "open", guarded)
        monkeypatch.setattr(os, "scandir", guarded_scan)
        video(folder / "more.mp4")
        with pytest.warns(UserWarning, match="passed over|left out") as seen:
            media = gather([folder])
        assert [e.path.name for e in media.videos] == ["more.mp4", "walk.mp4"]
        assert media.videos[1].caption == ""
        told = "\n".join(str(warning.message) for warning in seen)
        for name in ("deep", "cat.png", "walk.txt", "a.jsonl"):
            assert name in told

    def test_a_side_car_may_begin_with_a_byte_order_mark(self, folder: Path) -> None:
        (folder / "walk.txt").write_text("\ufeffa man walks", encoding="utf-8")
        assert gather([folder]).videos[1].caption == "a man walks"

    def test_what_was_left_out_is_listed_when_a_command_ends(self, folder: Path) -> None:
        rows = manifest(folder / "a.jsonl", [{"path": "walk.mp4"}, {"path": "gone.mp4"}])
        code = f"""
import sys
from pyratok.cli.app import _readable_warnings
from pyratok.data.manifests import gather
with _readable_warnings():
    gather([{str(rows)!r}]), gather([{str(rows)!r}])
    print("trained", file=sys.stderr)
gather([{str(rows)!r}])
"""
        done = run_python("-c", code)
        first, _, last = done.stderr.partition("trained\n")
        assert first.startswith("pyratok: warning: left out: 1 of 2 files named in")
        listed = f"pyratok: left out in all, 1:\n  {folder / 'gone.mp4'}: no such file or directory\n"
        assert last.startswith(listed)
        assert listed not in last.removeprefix(listed)


class TestReport:
    def causes(self, count: int) -> dict[Path, str]:
        return {Path(f"{number}.mp4"): "is broken" for number in range(count)}

    def test_lists_ten(self) -> None:
        with pytest.warns(LeftOutWarning, match="left out: 13 of 26 videos cannot be used") as seen:
            report_broken("videos", 26, self.causes(13))
        assert len(seen[0].message.causes) == 13  # type: ignore[union-attr]
        lines = str(seen[0].message).splitlines()
        assert len(lines) == 12
        assert lines[1] == "  0.mp4: is broken"
        assert lines[-1] == "  and 3 more"

    def test_more_than_half_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="13 of 25 videos cannot be used"):
            report_broken("videos", 25, self.causes(13))

    def test_silent_when_all_is_well(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report_broken("videos", 3, {})


class TestKinds:
    @pytest.mark.parametrize(
        ("name", "channels", "kind"),
        [
            ("a.png", 3, "photos"),
            ("a.png", 4, "sprites"),
            ("a.webp", 3, "photos"),
            ("a.webp", 4, "sprites"),
            ("a.jpg", 3, "photos"),
            ("a.bmp", 3, "photos"),
        ],
    )
    def test_images_with_alpha_are_sprites(self, tmp_path: Path, name: str, channels: int, kind: str) -> None:
        image = np.random.default_rng(0).integers(0, 256, (8, 8, channels), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / name), image)
        assert kind_of(tmp_path / name) == kind

    def test_lossless_webp(self, tmp_path: Path) -> None:
        image = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "a.webp"), image, [cv2.IMWRITE_WEBP_QUALITY, 101])
        assert kind_of(tmp_path / "a.webp") == "sprites"

    def test_grey_with_alpha(self, tmp_path: Path) -> None:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 2, 2, 8, 4, 0, 0, 0)
        pixels = zlib.compress(b"\0" + bytes([50, 255, 60, 0]) + b"\0" + bytes([70, 128, 80, 255]))
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
        assert kind_of(tmp_path / "a.png") == "sprites"

    @pytest.mark.parametrize("content", [b"", b"\x89PNG", bytes(range(100, 111))])
    def test_what_is_no_image_is_an_error(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"the file is empty|neither a video nor an image"):
            kind_of(tmp_path / "a.png")
