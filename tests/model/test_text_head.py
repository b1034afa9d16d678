"""From tokens to the text space."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyratok.config import TextHeadConfig
from pyratok.model.pretrained import ModelLoadError
from pyratok.model.pyratok import PyraTok
from pyratok.model.text_head import TextHead
from tiny import CONFIG, LAPQ, StubText, random_video, tiny_pyratok

WITH_HEAD = replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=2, kernel=3))


@pytest.fixture
def model() -> PyraTok:
    model = tiny_pyratok(config=WITH_HEAD)
    model.text_encoder = StubText()
    return model


@pytest.mark.parametrize("level", [*range(LAPQ.num_levels), -1])
def test_a_unit_vector_per_token(model: PyraTok, level: int) -> None:
    tokens = model.encode(random_video(2))
    found = model.text_space(tokens, level)
    assert found.shape == (*tokens.levels[level].shape, LAPQ.text_dim)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(tokens.levels[level].shape))


def test_a_level_is_read_with_those_before_it_alone(model: PyraTok) -> None:
    tokens = model.encode(random_video())
    assert torch.equal(model.text_space(tokens, 1), model.text_space(tokens.prefix(2)))
    assert not torch.equal(model.text_space(tokens, 2), model.text_space(tokens, 3))


def test_a_step_reads_the_same_in_a_clip_and_in_a_part_of_it(model: PyraTok) -> None:
    tokens = model.encode(random_video(2, frames=13))
    for level in range(LAPQ.num_levels):
        whole = model.text_space(tokens, level)
        for start, stop in ((0, 1), (0, 2), (1, 2), (1, 4), (3, 4)):
            part = model.text_space(tokens.time_slice(start, stop), level)
            torch.testing.assert_close(part, whole[:, slice(*tokens.geometry.level_steps(level, start, stop))])


def test_texts_and_tokens_share_a_space(model: PyraTok) -> None:
    texts = model.embed_text(["a dog", "two cats"])
    assert texts.shape == (2, model.text_space(model.encode(random_video())).shape[-1])
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(2))


def test_the_head_does_not_change_what_ids_mean(model: PyraTok) -> None:
    """Tokens stay readable when the head is trained further."""
    plain = PyraTok(CONFIG).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("text_head")})
    assert plain.fingerprint() == model.fingerprint()
    assert plain.digest() != model.digest()
    video = random_video()
    assert plain.encode(video) == model.encode(video)


def test_without_a_head_there_is_a_clear_error() -> None:
    model = tiny_pyratok()
    with pytest.raises(ValueError, match="has no text head"):
        model.text_space(model.encode(random_video()))


def test_foreign_tokens_and_missing_levels_are_refused(model: PyraTok) -> None:
    tokens = model.encode(random_video())
    with pytest.raises(ValueError, match="hold levels 0 to 1, asked for level 2"):
        model.text_space(tokens.prefix(2), 2)
    with pytest.raises(ValueError, match="these tokens were made by"):
        tiny_pyratok(seed=1, config=WITH_HEAD).text_space(tokens)


def test_saved_and_loaded_it_reads_the_same(model: PyraTok, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    tokens = model.encode(random_video())
    assert torch.equal(PyraTok.from_pretrained(tmp_path / "m").text_space(tokens), model.text_space(tokens))


def test_a_damaged_head_is_found(model: PyraTok, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["text_head.out.bias"] += 1
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match="a file is damaged"):
        PyraTok.from_pretrained(tmp_path / "m")


@pytest.mark.slow
def test_a_word_alone_can_be_trained_compiled() -> None:
    """text_words reads single cells."""
    head = TextHead(TextHeadConfig(width=16, num_blocks=1, kernel=3), width=8, num_levels=1, text_dim=4)
    cell = torch.randn(2, 8, 1, 1, 1)
    found = torch.compile(head)(cell, 0)
    torch.testing.assert_close(found, head(cell, 0), rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    assert head.stem.weight.grad is not None
