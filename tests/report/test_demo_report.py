"""The demo's result and its page: right numbers, nothing fetched, nothing broken by odd names."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fakes import FakeTokenizer, moving_video
from pyratok.codec.container import load_tokens, save_tokens
from pyratok.data.video_io import load_video, probe, save_video
from pyratok.metrics.reconstruction import psnr
from pyratok.report.demo import DemoResult, Imagined, run_demo, sample_clip
from pyratok.report.page import render
from pyratok.report.stopwatch import Stopwatch


def make(folder: Path, name: str = "clip.mp4", frames: int = 9) -> DemoResult:
    clip = folder / name
    save_video(moving_video(frames, fps=None if frames == 1 else 12.0), clip, fps=None if frames == 1 else 12.0)
    tokens, video = folder / "out.pyra", folder / ("out.png" if frames == 1 else "out.mp4")
    return run_demo(FakeTokenizer(), clip, tokens, video, size=None, frames=None, watch=Stopwatch())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(folder: Path) -> DemoResult:
    return make(folder)


@pytest.fixture(scope="module")
def page(result: DemoResult) -> str:
    return render(result)


class Tags(HTMLParser):
    """Collects tags and refuses a page whose tags do not match."""

    VOID = frozenset("meta link input img br".split())

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_numbers_are_those_of_the_files(result: DemoResult, folder: Path) -> None:
    tokens = load_tokens(folder / "out.pyra")
    video = load_video(folder / "clip.mp4")
    assert [prefix.levels for prefix in result.prefixes] == [1, 2, 3]
    for prefix in result.prefixes:
        held = tokens.prefix(prefix.levels)
        assert prefix.bits_per_pixel == held.bits_per_pixel
        save_tokens(held, folder / "prefix.pyra")
        assert prefix.file_bytes <= (folder / "out.pyra").stat().st_size
        assert prefix.mean_psnr == pytest.approx(psnr(FakeTokenizer().decode(held), video).item(), abs=1e-3)
    assert result.prefixes[-1].file_bytes == (folder / "out.pyra").stat().st_size
    assert probe(folder / "out.mp4").frames == 9


def test_numbers_are_json(result: DemoResult) -> None:
    assert json.loads(json.dumps(result.numbers(), allow_nan=False))["geometry"]["frames"] == 9


def test_the_page_is_well_formed_and_has_all_parts(page: str, result: DemoResult) -> None:
    tags = Tags(page).seen
    videos = [attributes for tag, attributes in tags if tag == "video"]
    # original, every prefix and the error; two more for the viewer, filled in by the script
    assert len(videos) == len(result.prefixes) + 2 + 2
    assert len([a for tag, a in tags if a.get("class") == "map"]) == 3
    assert len([a for tag, a in tags if a.get("class") == "chart"]) == 2
    assert len([a for tag, a in tags if a.get("class") == "bits"]) == 3
    assert "$" not in re.sub(r"<script>.*?</script>|base64,[\w+/=]+", "", page, flags=re.DOTALL)


def test_the_page_needs_nothing_beside_it(page: str) -> None:
    for tag, attributes in Tags(page).seen:
        for name in ("src", "href", "poster", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:60])
    assert not re.search(r"(https?:)?//[\w-]+\.[a-z]", re.sub(r"base64,[\w+/=]+", "", page))
    assert not re.search(r"@import|url\((?!data:)", page)


def test_videos_in_the_page_play(page: str, tmp_path: Path) -> None:
    found = re.findall(r"data:video/mp4;base64,([\w+/=]+)", page)
    assert len(found) == 5
    for index, text in enumerate(found):
        path = tmp_path / f"{index}.mp4"
        path.write_bytes(base64.b64decode(text))
        assert load_video(path).shape == (1, 3, 9, 48, 64)


def test_sizes_are_compared_only_where_they_may_be(result: DemoResult, page: str, folder: Path) -> None:
    assert result.is_whole_source
    assert "the source file. Tokens" in page
    outputs = folder / "part.pyra", folder / "part.mp4"
    part = run_demo(FakeTokenizer(), folder / "clip.mp4", *outputs, size=None, frames=5, watch=Stopwatch())
    assert not part.is_whole_source
    assert "the source file. Tokens" not in render(part)


def test_token_maps_cover_the_padded_frame(page: str, result: DemoResult) -> None:
    padded = result.geometry.padded
    assert page.count(f"aspect-ratio:{padded[2]}/{padded[1]}") == 3
    assert [f"background-size:{100 * result.geometry.grid(level)[0]}% 100%" in page for level in range(3)] == [True] * 3


def test_odd_names_stay_text(tmp_path: Path) -> None:
    page = render(make(tmp_path, name="<b>&amp; $title.mp4"))
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;amp; $title.mp4" in page
    Tags(page)


def test_an_image_becomes_pictures(tmp_path: Path) -> None:
    result = make(tmp_path, name="clip.png", frames=1)
    page = render(result)
    tags = [tag for tag, _ in Tags(page).seen]
    assert "video" not in tags
    assert tags.count("img") == 3 + 2 + 2
    assert 'id="frames"' not in page
    assert (tmp_path / "out.png").read_bytes() == result.prefixes[-1].media


def test_a_video_of_one_frame_stays_a_video(result: DemoResult, folder: Path) -> None:
    one = run_demo(
        FakeTokenizer(), folder / "clip.mp4", folder / "1.pyra", folder / "1.mp4", size=None, frames=1,
        watch=Stopwatch(),
    )  # fmt: skip
    assert one.is_image
    assert (probe(folder / "1.mp4").is_image, load_video(folder / "1.mp4").shape) == (False, (1, 3, 1, 48, 64))
    Tags(render(one))


def test_the_sample_clip_is_small_silent_and_attributed() -> None:
    sample = sample_clip()
    info = probe(sample)
    assert (info.height, info.width, info.frames, info.has_audio) == (256, 448, 41, False)
    assert sample.stat().st_size < 400_000
    assert "CC BY 4.0" in (sample.parent / "README.md").read_text()


def test_clips_of_a_prior_are_shown_with_their_prompts(result: DemoResult, page: str) -> None:
    assert 'id="imagined"' not in page
    clips = tuple(Imagined(prompt=prompt, media=result.original) for prompt in ("a <red> ball", "a star"))
    shown = render(replace(result, imagined=clips))
    assert 'id="imagined"' in shown
    assert "&ldquo;a &lt;red&gt; ball&rdquo;" in shown
    loops = [attrs for tag, attrs in Tags(shown).seen if tag == "video" and attrs.get("class") == "loop"]
    assert len(loops) == 2  # outside the clock that the other videos follow
    assert replace(result, imagined=clips).numbers()["imagined"] == ["a <red> ball", "a star"]
    unread = render(replace(result, imagined=()))
    assert "pyratok[text]" in unread.partition('id="imagined"')[2].partition("</section>")[0]
