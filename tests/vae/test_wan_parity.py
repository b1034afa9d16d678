"""Our whole-clip pass gives the numbers of diffusers' frame-by-frame one, from the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_loading import load_wan_vae
from tiny import VAE, random_video, randomize_gains

reference_module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")

TOLERANCE = 1e-4
PLAIN = {  # Wan 2.1
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1] * 4,
    "latents_std": [2.0] * 4,
}
RESIDUAL = PLAIN | {  # Wan 2.2
    "decoder_base_dim": 12,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}


def build_reference(fields: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    reference = reference_module.AutoencoderKLWan(**fields).eval()
    randomize_gains(reference)
    return reference


@pytest.fixture(scope="module", params=[PLAIN, RESIDUAL], ids=["plain", "residual"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, WanVAE]:
    """diffusers' model, and ours loaded from the folder that it wrote."""
    reference = build_reference(request.param)
    folder = tmp_path_factory.mktemp("wan")
    reference.save_pretrained(folder)
    return reference, load_wan_vae(folder)


@pytest.fixture(scope="module")
def nano_shaped_pair() -> tuple[Any, WanVAE]:
    """The options that go beyond diffusers, put into its model by hand: a stage that keeps space, no attention."""
    fields = PLAIN | {
        "base_dim": VAE.base_dim,
        "z_dim": VAE.z_dim,
        "dim_mult": list(VAE.dim_mult),
        "num_res_blocks": VAE.num_res_blocks,
        "temperal_downsample": list(VAE.temporal_downsample),
        "in_channels": 48,
        "out_channels": 48,
        "patch_size": 4,
    }
    reference = build_reference(fields)
    down = [layer for layer in reference.encoder.down_blocks if isinstance(layer, reference_module.WanResample)]
    up = reference.decoder.up_blocks[0].upsamplers[0]
    down[1].resample = nn.Sequential(nn.Identity(), nn.Conv2d(down[1].dim, down[1].dim, 3, padding=1))
    up.resample = nn.Sequential(nn.Identity(), nn.Conv2d(up.dim, up.dim // 2, 3, padding=1))
    for half in (reference.encoder, reference.decoder):
        half.mid_block.attentions = nn.ModuleList([None])  # type: ignore[list-item]
    ours = WanVAE(VAE).eval()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def reference_taps(reference: Any, video: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Posterior moments, and what comes out of every stage's residual blocks and of the middle, chunk by chunk."""
    encoder = reference.encoder
    if reference.config.is_residual:
        layers = [block.resnets[-1] for block in encoder.down_blocks]
    else:
        blocks = list(encoder.down_blocks)
        ends = [i for i, block in enumerate(blocks) if isinstance(block, reference_module.WanResample)]
        layers = [blocks[i - 1] for i in (*ends, len(blocks))]
    layers.append(encoder.mid_block)
    chunks: list[list[Tensor]] = [[] for _ in layers]
    handles = [
        layer.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        for layer, seen in zip(layers, chunks, strict=True)
    ]
    try:
        moments = reference.encode(video).latent_dist.parameters
    finally:
        for handle in handles:
            handle.remove()
    return moments, [torch.cat(seen, dim=2) for seen in chunks]


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@torch.inference_mode()
def check_parity(reference: Any, ours: WanVAE, frames: int) -> None:
    video = random_video(2, frames, 32, 48)
    moments, taps = reference_taps(reference, video)
    our_taps = ours.encode_taps(video)
    assert len(our_taps) == len(taps)
    for number, (mine, theirs) in enumerate(zip(our_taps, taps, strict=True)):
        assert largest_difference(mine, theirs) < TOLERANCE, f"tap {number}"
    assert largest_difference(ours.encode(video), moments) < TOLERANCE

    latent = torch.randn_like(moments.chunk(2, dim=1)[0])
    decoded = ours.decode(latent)
    assert decoded.shape == video.shape
    assert float((decoded.abs() < 1).float().mean()) > 0.5, "clamped values would compare equal whatever they were"
    assert largest_difference(decoded.clamp(-1, 1), reference.decode(latent).sample) < TOLERANCE


@pytest.mark.parametrize("frames", [1, 5, 17, 33])
def test_files_of_diffusers(pair: tuple[Any, WanVAE], frames: int) -> None:
    check_parity(*pair, frames)


@pytest.mark.parametrize("frames", [1, 5, 17, 33])
def test_options_beyond_diffusers(nano_shaped_pair: tuple[Any, WanVAE], frames: int) -> None:
    check_parity(*nano_shaped_pair, frames)


def test_config_says_what_the_taps_are(pair: tuple[Any, WanVAE]) -> None:
    _, ours = pair
    taps = ours.encode_taps(random_video(1, 9, 32, 48))
    assert tuple(tap.shape[1] for tap in taps) == ours.config.tap_channels
    grids = tuple((1 + 8 // t, 32 // h, 48 // w) for t, h, w in ours.config.tap_strides)
    assert tuple(tuple(tap.shape[2:]) for tap in taps) == grids


def test_half_precision_files_and_pipeline_folders_load(tmp_path: Path) -> None:
    reference = build_reference(PLAIN).half()
    reference.save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    assert len(list((tmp_path / "vae").glob("*.safetensors"))) > 1
    ours = load_wan_vae(tmp_path)
    assert ours.config.latents_std == (2.0,) * 4
    state = ours.state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in reference.state_dict().items())
