"""The clips that a search found, on one page: a picture of each, best first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

from pyratok.report.canvas import Pixels
from pyratok.report.png import encode_png
from pyratok.types import ModelId

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pyratok: $query</title>
<link rel="icon" href="data:,">
<style>$style
.tiles { margin-top: 32px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 220px), 1fr)); }
.tiles h3 { overflow-wrap: anywhere; }
.score { display: block; height: 5px; border-radius: 3px; background: var(--accent); margin-top: 10px; min-width: 2px; }
.blank { aspect-ratio: 4/3; display: grid; place-items: center; background: var(--well); color: var(--soft); }
</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">pyratok &middot; search</p>
  <h1>&ldquo;$query&rdquo;</h1>
  <p class="lead">$lead</p>
</header>
<div class="tiles">$tiles</div>
<footer><p>Model $model. The score is the cosine of the clip, or of its best stretch, with the words. Every picture was
decoded from the tokens of its clip.</p></footer>
</main>
</body>
</html>
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """A clip: its name, its cosine with the words, where in it they fit, in seconds, and a frame from there.

    ``still`` uint8 ``[H, W, 3]``, None where the tokens alone give no picture.
    """

    name: str
    score: float
    start: float | None
    end: float | None
    still: Pixels | None


def render(query: str, folder: str, tiles: Sequence[Tile], total: int, model: ModelId) -> str:
    """The whole page as text, which needs nothing beside it; ``total``: clips that were searched."""
    style = (files("pyratok.report") / "template" / "style.css").read_text(encoding="utf-8")
    clips = "clip" if total == 1 else "clips"
    best = max((tile.score for tile in tiles), default=0.0)
    fields = {
        "query": escape(query),
        "style": style,
        "lead": f"The best {len(tiles)} of {total:,} {clips} in {escape(folder)}, found by their tokens alone.",
        "tiles": "".join(_figure(rank, tile, best) for rank, tile in enumerate(tiles, start=1)),
        "model": escape(str(model)),
    }
    # Names of files need not be text.
    return Template(PAGE).substitute(fields).encode("utf-8", "replace").decode()


def time_text(start: float | None, end: float | None) -> str:
    """Nothing where times are unknown."""
    return "" if start is None or end is None else f"{start:.1f} to {end:.1f} s"


def _figure(rank: int, tile: Tile, best: float) -> str:
    if tile.still is None:
        picture = '<div class="blank">a part without its beginning</div>'
    else:
        height, width = tile.still.shape[:2]
        data = base64.b64encode(encode_png(tile.still)).decode("ascii")
        size = f'width="{width}" height="{height}"'
        picture = f'<img class="media" {size} src="data:image/png;base64,{data}" alt="{escape(tile.name)}">'
    share = max(0.0, tile.score / best) if best > 0 else 0.0
    times = time_text(tile.start, tile.end)
    facts = f"{tile.score:.3f}" + (f" &middot; {times}" if times else "")
    bar = f'<i class="score" style="width:{100 * share:.1f}%"></i>'
    caption = f'<h3>{rank}. {escape(tile.name)}</h3><span class="num">{facts}</span>{bar}'
    return f'<figure class="card">{picture}<figcaption>{caption}</figcaption></figure>'
