"""Token language models come back from disk as they were, and only to the tokenizer they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyratok.model.alignment import TokenLM, TokenLMConfig
from pyratok.model.pretrained import ModelLoadError
from pyratok.model.token_lm_files import load_token_lm, save_token_lm
from pyratok.quantization.bits import ids_to_signs
from pyratok.types import ModelId

pytest.importorskip("transformers")

CONFIG = TokenLMConfig(num_levels=2, text_dim=6, num_bits=4, hidden_size=16, num_layers=1, num_heads=2, chunk_bits=2)
TOKENIZER = ModelId(name="tiny", fingerprint="0123456789abcdef")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[TokenLM, Path]:
    torch.manual_seed(0)
    lm = TokenLM(CONFIG).eval()
    save_token_lm(lm, tmp_path / "lm", TOKENIZER)
    return lm, tmp_path / "lm"


def test_a_reloaded_model_predicts_the_same(saved: tuple[TokenLM, Path]) -> None:
    lm, folder = saved
    again = load_token_lm(folder, TOKENIZER)
    assert again.config == CONFIG
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    levels = [ids_to_signs(torch.randint(16, (2, *grid)), 4) for grid in ((2, 1, 1), (2, 2, 2))]
    with torch.no_grad():
        assert torch.equal(again(levels).total, lm(levels).total)


def test_tokens_of_another_tokenizer_are_refused_by_both_names(saved: tuple[TokenLM, Path]) -> None:
    other = ModelId(name="other", fingerprint="f" * 16)
    with pytest.raises(ModelLoadError, match=r"tiny \(0123456789abcdef\), not of other \(ffff"):
        load_token_lm(saved[1], other)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_files_are_refused(saved: tuple[TokenLM, Path], name: str) -> None:
    path = saved[1] / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelLoadError, match="lm: "):
        load_token_lm(saved[1], TOKENIZER)
    path.unlink()
    with pytest.raises(ModelLoadError, match="lm: "):
        load_token_lm(saved[1], TOKENIZER)


def test_what_a_crash_leaves_while_a_model_is_replaced_is_refused(
    saved: tuple[TokenLM, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the new weights under the name of the old tokenizer."""

    def crash(path: Path) -> None:
        if path == saved[1]:
            raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("pyratok.vae.hub.sync", crash)
    with pytest.raises(OSError, match="Input/output"):
        save_token_lm(TokenLM(CONFIG), saved[1], ModelId(name="other", fingerprint="f" * 16))
    with pytest.raises(ModelLoadError, match="lm: "):
        load_token_lm(saved[1], TOKENIZER)


def test_a_tokenizer_is_no_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": "pyratok-model", "version": 1}')
    with pytest.raises(ModelLoadError, match="pyratok-token-lm"):
        load_token_lm(tmp_path)
