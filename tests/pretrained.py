"""Folders of tiny random models of the real classes that a full-scale run is built around."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = "<pad> <s> </s> <unk> a red disc moves left blue square grows".split()
WAN22 = {
    "base_dim": 8,
    "decoder_base_dim": 8,
    "z_dim": 6,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "latents_mean": [0.0] * 6,
    "latents_std": [1.0] * 6,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
}
"""Wan 2.2's fields at tiny widths."""


def save_wan22(folder: Path) -> None:
    import diffusers

    torch.manual_seed(0)
    diffusers.AutoencoderKLWan(**WAN22).save_pretrained(folder)


def save_qwen_vl(folder: Path) -> None:
    """Qwen2.5-VL with its tokenizer."""
    import tokenizers
    import transformers

    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    _spread(transformers.Qwen2_5_VLForConditionalGeneration(config)).save_pretrained(folder)
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(folder)


def save_dinov3(folder: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        num_register_tokens=4,
    )
    _spread(transformers.DINOv3ViTModel(config)).save_pretrained(folder)


def _spread(model: Any) -> Any:
    """Weights as they are drawn hardly tell one input from another."""
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model
