from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_blocks import (
    AverageDown,
    DuplicateUp,
    double_and_convolve,
    near_identity_,
    patchify,
    unpatchify,
)
from pyratok.vae.wan_loading import load_wan_vae
from tiny import VAE, VAES, random_video, tiny_vae

few = settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
every_variant = pytest.mark.parametrize("name", VAES)


@every_variant
@few
@given(st.integers(1, 12))
@torch.inference_mode()
def test_no_feature_knows_a_later_frame(name: str, frame: int) -> None:
    vae, video = tiny_vae(name), random_video(1, 13, 16, 32)
    changed = video.clone()
    changed[:, :, frame:] = random_video(1, 13 - frame, 16, 32, seed=1)
    features = (
        *zip(vae.encode_taps(video), vae.encode_taps(changed), strict=True),
        (vae.encode(video), vae.encode(changed)),
    )
    strides = (*vae.config.tap_strides, vae.config.latent_stride)
    for (stride, _, _), (a, b) in zip(strides, features, strict=True):
        step = -(-frame // stride)  # the first one that covers the frame
        assert torch.equal(a[:, :, :step], b[:, :, :step])
        assert not torch.equal(a[:, :, step], b[:, :, step])


@every_variant
@torch.inference_mode()
def test_no_decoded_frame_knows_a_later_latent(name: str) -> None:
    vae = tiny_vae(name)
    latent = torch.randn(1, vae.config.z_dim, 4, 2, 4)
    changed = latent.clone()
    changed[:, :, 2:] += 1
    first = 1 + vae.config.latent_stride[0]
    a, b = vae.decode(latent), vae.decode(changed)
    assert a.shape[2] == 1 + 3 * vae.config.latent_stride[0]
    assert torch.equal(a[:, :, :first], b[:, :, :first])
    assert not torch.equal(a[:, :, first], b[:, :, first])


@every_variant
@torch.inference_mode()
def test_an_image_is_the_first_frame_of_a_clip(name: str) -> None:
    vae, video = tiny_vae(name), random_video(2, 5, 16, 32)
    for clip, image in zip(vae.encode_taps(video), vae.encode_taps(video[:, :, :1]), strict=True):
        torch.testing.assert_close(image, clip[:, :, :1])
    moments = vae.encode(video)
    latent = moments.chunk(2, dim=1)[0]
    torch.testing.assert_close(vae.decode(latent[:, :, :1]), vae.decode(latent)[:, :, :1])
    reconstruction, same = vae(video)
    assert reconstruction.shape == video.shape
    assert torch.equal(same, moments)


@pytest.mark.parametrize("shape", [(3, 5, 16, 16), (5, 16), (1, 4, 5, 16, 16)])
def test_what_is_no_clip(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected video \[B, 3, T, H, W\]"):
        tiny_vae("nano").encode(torch.zeros(shape))


@pytest.mark.parametrize("size", [(4, 16, 16), (5, 12, 16), (5, 16, 12)])
def test_clips_that_do_not_fit_the_strides(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"does not fit the stride \(4, 8, 8\): pad it to 1 \+ 4 k frames"):
        tiny_vae("nano").encode(random_video(1, *size))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_patches_are_the_pixels(size: int) -> None:
    video = random_video(2, 3, 8, 16)
    patches = patchify(video, size)
    assert patches.shape == (2, 3 * size**2, 3, 8 // size, 16 // size)
    assert torch.equal(unpatchify(patches, size), video)


@pytest.mark.parametrize("factor_t", [1, 2])
def test_shortcuts_undo_each_other(factor_t: int) -> None:
    """Repeating into space and time, then averaging what was repeated, is the identity."""
    x = torch.randn(2, 4, 3, 4, 4)
    there, back = DuplicateUp(4, 4, factor_t, 2), AverageDown(4, 4, factor_t, 2)
    larger = there(x)
    assert larger.shape == (2, 4, 1 + 2 * factor_t if factor_t == 2 else 3, 8, 8)
    torch.testing.assert_close(back(larger)[:, :, 1:], x[:, :, 1:])


def test_a_start_near_the_identity_passes_gradients() -> None:
    """Residual branches are silent, and a change of any pixel moves the reconstruction."""
    torch.manual_seed(0)
    vae = near_identity_(WanVAE(VAE)).eval()
    silent = [parameter for name, parameter in vae.named_parameters() if "conv2." in name]
    assert silent
    assert not any(bool(parameter.any()) for parameter in silent)
    video = random_video(1, 5, 16, 16).requires_grad_()
    vae(video)[0].square().sum().backward()
    assert video.grad is not None
    assert bool((video.grad != 0).all())


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


PLAIN = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "latents_mean": None,
    "patch_size": None,
}


def test_loads_without_diffusers(tmp_path: Path) -> None:
    vae = tiny_vae("plain")
    loaded = load_wan_vae(write_folder(tmp_path, PLAIN, vae.state_dict()))
    assert loaded.config == vae.config
    assert not loaded.training
    assert all(torch.equal(value, vae.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_of_a_hub_repository_only_the_vae_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[list[str]] = []

    def snapshot(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path / "vae")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    write_folder(tmp_path / "vae", PLAIN, tiny_vae("plain").state_dict())
    load_wan_vae("owner/name")
    pipeline = """
        model_index.json README.md config.json diffusion_pytorch_model.safetensors diffusion_pytorch_model.bin
        diffusion_pytorch_model-00001-of-00002.safetensors diffusion_pytorch_model.safetensors.index.json
        vae/config.json vae/diffusion_pytorch_model.safetensors vae/diffusion_pytorch_model.bin
        transformer/config.json transformer/diffusion_pytorch_model-00001-of-00012.safetensors
        text_encoder/model-00001-of-00005.safetensors tokenizer/tokenizer.json scheduler/config.json
    """.split()
    found = list(hub.utils.filter_repo_objects(pipeline, allow_patterns=asked[0]))
    assert found == [
        name for name in pipeline if name.startswith(("config", "diffusion", "vae/")) and ".bin" not in name
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json there"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json holds no JSON object"),
        (
            lambda f: (f / "config.json").write_text(json.dumps(PLAIN | {"dropout": 0.1})),
            "dropout = 0.1 is not supported",
        ),
        (lambda f: (f / "config.json").write_text(json.dumps(PLAIN | {"z_dim": 5})), "the configuration asks for"),
        (lambda f: (f / "config.json").write_text(json.dumps(PLAIN | {"scale": 5})), "unknown field 'scale'"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), "cannot be read as safetensors"),
        (
            lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"no tensors"),
            "cannot be read as safetensors",
        ),
        (lambda f: (f / "diffusion_pytorch_model.safetensors.index.json").write_text("{}"), "has no weight_map"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    folder = write_folder(tmp_path / "vae", PLAIN, tiny_vae("plain").state_dict())
    damage(folder)
    with pytest.raises(ValueError, match="vae: ") as error:
        load_wan_vae(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bias", [True, False])
def test_doubling_within_the_convolution_gives_what_doubling_before_it_gives(bias: bool) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    doubled = F.interpolate(x, scale_factor=2, mode="nearest-exact")
    torch.testing.assert_close(double_and_convolve(x, conv.weight, conv.bias), conv(doubled))
