"""The authors' layout against an independent computation with diffusers' encoder and decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyratok.model.pretrained import ModelLoadError, from_pretrained
from tiny import random_video, randomize_gains

AutoencoderKLWan = pytest.importorskip("diffusers").AutoencoderKLWan

BITS, STAGES = 16, 4
WAN = {
    "base_dim": 8,
    "z_dim": BITS,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "scale_factor_spatial": 4,
}
RELEASED = {
    "_class_name": "AutoencoderKLPyraTok",
    "lapq_num_quantizers": STAGES,
    "lapq_codebook_dim": BITS,
    "lapq_num_codes": 1 << BITS,
    "lapq_text_input_dim": 12,
    "lapq_text_embed_dim": 8,
    "lapq_text_mlp_hidden_dim": 10,
}
TEXT_TENSORS = {
    "lapq_quantizer.layers.0.text_proj.weight": (16, 8),
    "lapq_text_mlp.0.weight": (10, 12),
    "lapq_text_mlp.2.weight": (8, 10),
}
STEM = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def reference() -> Any:
    torch.manual_seed(1)
    model = AutoencoderKLWan(**WAN).eval()
    randomize_gains(model)
    # So that the latent is wide enough for all stages to have something to say.
    torch.nn.init.normal_(model.quant_conv.weight, std=0.4)
    return model


@pytest.fixture
def folder(reference: Any, tmp_path: Path) -> Path:
    path = tmp_path / "released"
    reference.save_pretrained(path)
    weights = load_file(path / STEM) | {name: torch.randn(shape) for name, shape in TEXT_TENSORS.items()}
    save_file(weights, path / STEM)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | RELEASED))
    return path


@torch.inference_mode()
def test_ids_and_video_are_those_of_the_parts(reference: Any, folder: Path) -> None:
    model, video = from_pretrained(folder), random_video(2, 9, 16, 24)
    tokens = model.encode(video)
    assert (model.num_levels, tokens.num_bits) == (STAGES, BITS)

    residual = reference.encode(video).latent_dist.mode()
    latent = torch.zeros_like(residual)
    for stage, ids in enumerate(tokens.levels):
        assert ids.shape == (2, 3, 4, 6)
        ones = (ids.unsqueeze(1) >> torch.arange(BITS).view(1, -1, 1, 1, 1)) & 1
        clear = residual.abs() > 1e-4
        assert float(clear.float().mean()) > 0.99
        assert torch.equal((ones == 1)[clear], (residual >= 0)[clear])
        step = torch.where(ones == 1, 1.0, -1.0) * 2.0**-stage
        latent, residual = latent + step, residual - step
        expected = reference.decode(latent).sample
        assert float((model.decode(tokens, levels=stage + 1) - expected).abs().max()) < 1e-4
    assert not torch.equal(*tokens.levels[:2])


def test_any_size_comes_back(folder: Path) -> None:
    model, video = from_pretrained(folder), random_video(1, 6, 9, 11)
    assert model.decode(model.encode(video)).shape == video.shape


def test_text_is_off(folder: Path) -> None:
    model = from_pretrained(folder)
    assert not any(name.startswith("lapq") for name in model.state_dict())

    class Unused:
        def encode(self, texts: list[str]) -> str:
            return "an embedding"

    model.text_encoder = Unused()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="has no text path"):
        model.encode(random_video(), caption="a dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.update({"lapq_decoder.weight": torch.ones(1)}), "1 unknown, such as lapq_decoder"),
        (lambda weights: weights.pop("decoder.conv_in.bias"), "1 missing, such as decoder.conv_in.bias"),
        (
            lambda weights: weights.update({"decoder.conv_in.bias": torch.ones(3)}),
            "decoder.conv_in.bias has shape (3,)",
        ),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: Callable[[Any], None], message: str) -> None:
    weights = load_file(folder / STEM)
    change(weights)
    save_file(weights, folder / STEM)
    with pytest.raises(ModelLoadError) as error:
        from_pretrained(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)


def test_words_beyond_an_id_are_refused_at_once(tmp_path: Path) -> None:
    """The latent of Wan 2.2 has 48 channels."""
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLPyraTok", "z_dim": 48}))
    with pytest.raises(ModelLoadError, match=r"z_dim 48 .* at most 30 bits"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lapq_num_quantizers": 0}, "lapq_num_quantizers must be at least 1, got 0"),
        ({"lapq_num_quantizers": "four"}, "lapq_num_quantizers must be at least 1, got 'four'"),
        ({"lapq_codebook_dim": 8}, "lapq_codebook_dim 8 does not go with z_dim 16"),
        ({"lapq_num_codes": 48_000}, "lapq_num_codes 48000 does not go with z_dim 16"),
        ({"attn_scales": [1.0]}, "attn_scales = [1.0] is not supported"),
        ({"window": 3}, "unknown field 'window'"),
        ({"dim_mult": "1, 2"}, "dim_mult: expected a list"),
        ({"latents_mean": [0.0]}, "latents_mean needs z_dim = 16 entries, got 1"),
    ],
)
def test_config_that_does_not_fit(folder: Path, fields: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ModelLoadError) as error:
        from_pretrained(folder)
    assert message in str(error.value)
