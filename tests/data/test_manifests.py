from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from pyratok.data.manifests import gather, kind_of, read_manifest, report_broken


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
        with pytest.warns(UserWarning, match=r"passed over: .*measurements.csv: row 1 has no 'path'"):
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
        ["{", "[1]", '"walk.mp4"', "{}", '{"path": 3}', '{"path": ""}', '{"path": "x.mp4", "caption": 5}', "null"],
    )
    def test_broken_rows_are_named(self, folder: Path, row: str) -> None:
        path = folder / "a.jsonl"
        path.write_text('{"path": "walk.mp4"}\n' + row + "\n")
        with pytest.raises(ValueError, match=r"a.jsonl: row 2 has no 'path' and 'caption' but"):
            gather([path])

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


class TestReport:
    def causes(self, count: int) -> dict[Path, str]:
        return {Path(f"{number}.mp4"): "is broken" for number in range(count)}

    def test_lists_ten(self) -> None:
        with pytest.warns(UserWarning, match="left out: 13 of 26 videos cannot be used") as seen:
            report_broken("videos", 26, self.causes(13))
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

    @pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", bytes(range(100, 111))])
    def test_a_short_file_is_no_crash(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.png").write_bytes(content)
        assert kind_of(tmp_path / "a.png") == "photos"
