from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from pyratok.data.mixes import DataConfig, mixed_clips
from pyratok.data.sources import Sprites
from pyratok.data.words import is_unseen


def test_the_rule_is_about_the_lower_cased_text_and_takes_a_quarter():
    words = [f"word {i}" for i in range(2000)]
    assert 0.22 < np.mean([is_unseen(word) for word in words]) < 0.28
    assert all(is_unseen(word) == is_unseen(word.upper()) for word in words)


def test_sprites_of_unseen_words_are_in_no_clip(tmp_path: Path):
    words = [f"object {i}" for i in range(12)]
    assert 0 < sum(map(is_unseen, words)) < len(words)
    rng = np.random.default_rng(0)
    for index in range(len(words)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), rng.integers(0, 256, (16, 16, 4), dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "photo.jpg"), rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    rows = [json.dumps({"path": f"{index}.png", "caption": word}) for index, word in enumerate(words)]
    (tmp_path / "sprites.jsonl").write_text("\n".join(rows))

    shape = {"frames": 5, "size": 32, "length": 8, "seed": 0}
    clips = mixed_clips(DataConfig(), [tmp_path], tmp_path / "cache", **shape)
    sprites = next(source for source in clips.sources if isinstance(source, Sprites))
    shown = {words[int(path.stem)] for path in sprites.sprites}
    assert shown == {word for word in words if not is_unseen(word)}
