"""Reference image encoders read from folders of the real transformers classes, tiny and random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyratok.text.references import IMAGENET_MEAN, IMAGENET_STD, DinoReference, ReferenceEncoder
from tiny import random_video

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def since(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not hasattr(transformers, name), reason=f"this transformers has no {name}")


MODELS: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE)),
    "dinov2-registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=3)
    ),
    "dinov3": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SHAPE, num_register_tokens=4)),
}
PARAMETERS = [
    "dinov2",
    pytest.param("dinov2-registers", marks=since("Dinov2WithRegistersModel")),
    pytest.param("dinov3", marks=since("DINOv3ViTModel")),
]


def save(name: str, folder: Path) -> Any:
    """Save a random model with weights far from their defaults; returns it."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", PARAMETERS)
def test_features_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    model, reference, video = save(name, tmp_path), DinoReference(tmp_path), random_video(2, 3, 16, 32)
    found = reference.encode_frames(video)
    assert isinstance(reference, ReferenceEncoder)
    assert (reference.dim, reference.patch, found.grid) == (16, 8, (2, 4))
    assert (found.patches.shape, found.pooled.shape) == ((2, 3, 8, 16), (2, 3, 16))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        wanted = model(pixel_values=((video[1, :, 2][None] + 1) / 2 - mean) / std)
    torch.testing.assert_close(found.pooled[1, 2], wanted.pooler_output[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.patches[1, 2], wanted.last_hidden_state[0, -8:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_stay_and_the_video_gets_the_gradient(name: str, tmp_path: Path) -> None:
    save(name, tmp_path)
    reference, video = DinoReference(tmp_path), random_video(1, 2, 16, 16).requires_grad_()
    reference.encode_frames(video).patches.square().sum().backward()
    assert video.grad is not None
    assert video.grad.isfinite().all()
    assert video.grad.flatten(3).any(-1).all()
    assert not any(value.requires_grad for value in reference._model.parameters())


@pytest.mark.parametrize(
    ("size", "max_side", "grid"),
    [
        ((16, 32), None, (2, 4)),
        ((19, 30), None, (2, 4)),
        ((3, 5), None, (1, 1)),
        ((64, 128), 32, (2, 4)),
        ((100, 100), 30, (3, 3)),
        ((8, 16), 32, (1, 2)),
    ],
)
def test_frames_are_fitted_to_patches(
    size: tuple[int, int], max_side: int | None, grid: tuple[int, int], tmp_path: Path
) -> None:
    save("dinov2", tmp_path)
    found = DinoReference(tmp_path, max_side=max_side).encode_frames(random_video(1, 1, *size))
    assert found.grid == grid
    assert found.patches.shape == (1, 1, grid[0] * grid[1], 16)


def test_colours_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    model, video = save("dinov2", tmp_path), random_video(1, 1, 16, 16)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    found = DinoReference(tmp_path).encode_frames(video)
    with torch.no_grad():
        wanted = model(pixel_values=video[:, :, 0]).pooler_output
    torch.testing.assert_close(found.pooled[0], wanted, atol=1e-5, rtol=1e-4)


def test_half_precision_and_autocast(tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    video, reference = random_video(1, 1, 16, 16), DinoReference(tmp_path)
    plain = reference.encode_frames(video)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reference.encode_frames(video).patches, plain.patches)
    half = DinoReference(tmp_path, dtype=torch.bfloat16).encode_frames(video)
    assert half.patches.dtype == torch.float32
    torch.testing.assert_close(half.patches, plain.patches, atol=0.2, rtol=0.1)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"image_mean": 1}', '{"image_mean": [1, 2]}', '{"image_std": [0.2, 0, 0.2]}']
)
def test_damaged_preprocessor(text: str, tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        DinoReference(tmp_path)


def test_other_models_are_refused(tmp_path: Path) -> None:
    transformers.ViTModel(transformers.ViTConfig(**SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: expected one of dinov2.*got 'vit'"):
        DinoReference(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        DinoReference(tmp_path / "absent")


def test_wrong_arguments(tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    with pytest.raises(ValueError, match=r"max_side.*8 pixels, got 7"):
        DinoReference(tmp_path, max_side=7)
    reference = DinoReference(tmp_path)
    for video in (random_video()[0], random_video()[:, :2], random_video().to(torch.uint8)):
        with pytest.raises(ValueError, match=r"\[B, 3, T, H, W\]"):
            reference.encode_frames(video)
