"""Priors come back from disk as they were, and only for the tokenizer whose tokens they have learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pyratok.model.pretrained import ModelLoadError
from pyratok.tasks.generation.files import load_prior, save_prior
from pyratok.tasks.generation.generate import generate
from pyratok.types import ModelId
from tiny_priors import GEOMETRY, KINDS, TOKENIZER, tiny_prior


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_same_after_a_trip_to_disk(kind: str, tmp_path: Path) -> None:
    prior = tiny_prior(kind)
    save_prior(prior, tmp_path / "prior")
    back = load_prior(tmp_path / "prior", TOKENIZER)
    assert back.config == prior.config
    assert not back.training
    assert not any(weight.requires_grad for weight in back.parameters())
    assert generate(back, None, GEOMETRY, steps=2) == generate(prior, None, GEOMETRY, steps=2)


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    prior = tiny_prior("ar")
    save_prior(prior, tmp_path, dtype=torch.bfloat16)
    size = sum(weight.numel() for weight in prior.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 3 * size + 10_000
    for a, b in zip(load_prior(tmp_path).parameters(), prior.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-2, atol=1e-6)
        assert a.dtype == torch.float32


def test_refused(tmp_path: Path) -> None:
    folder = tmp_path / "prior"
    save_prior(tiny_prior("ar"), folder)
    with pytest.raises(ModelLoadError, match=r"learned the tokens of tiny .*, not of other"):
        load_prior(folder, ModelId(name="other", fingerprint="f" * 16))
    with pytest.raises(ModelLoadError, match="no such folder"):
        load_prior(tmp_path / "nothing")
    header = json.loads((folder / "config.json").read_text())
    for change, message in [
        ({"format": "pyratok-model"}, "not that of a pyratok-prior"),
        ({"prior": header["prior"] | {"num_layers": 3}}, "do not fit"),
        ({"prior": header["prior"] | {"size": 3}}, "no field 'size'"),
    ]:
        (folder / "config.json").write_text(json.dumps(header | change))
        with pytest.raises(ModelLoadError, match=message):
            load_prior(folder)
    (folder / "config.json").write_text(json.dumps(header))
    (folder / "model.safetensors").write_bytes(b"damage")
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_prior(folder)
