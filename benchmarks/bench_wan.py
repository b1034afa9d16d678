"""The Wan 2.1 VAE (base width 96) against diffusers' AutoencoderKLWan on the same random weights.

Seconds of encoding (video to moments) and decoding (latent to video), taking turns in one process; the share of the
machine's best convolution rate that each reaches; and the peak memory of each in processes of their own: of our whole
clip at once, and of one latent step after another with carried state, which gives the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from common import in_fresh_process, interleaved, parser, publish, ratio, rounded
from peers import as_diffusers
from roofline import best_rate, convolutions, flops
from torch import Tensor

from pyratok.config import WanVAEConfig
from pyratok.nn.carry import Carry
from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_blocks import channels_last_

DTYPES = ("float32", "bfloat16")
TIMED, MEASURED = (17, 128, 128), (33, 256, 256)
TINY = (5, 32, 32)


def build(dtype: str, quick: bool) -> WanVAE:
    torch.manual_seed(0)
    vae = WanVAE(WanVAEConfig(base_dim=8, z_dim=4) if quick else WanVAEConfig())
    channels_last_(vae.to(getattr(torch, dtype)))
    return vae.eval()


def inputs(vae: WanVAE, clip: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """A video and a latent of its size, noise, in the type of the weights."""
    dtype = next(vae.parameters()).dtype
    frames, *size = clip
    time, *space = vae.config.latent_stride
    grid = [1 + (frames - 1) // time, *(pixels // stride for pixels, stride in zip(size, space, strict=True))]
    video = torch.rand(1, 3, *clip) * 2 - 1
    return video.to(dtype), torch.randn(1, vae.config.z_dim, *grid).to(dtype)


@torch.no_grad()
def compare(dtype: str, quick: bool) -> dict[str, Any]:
    """Seconds, ratios and shares of the roofline in one type."""
    ours = build(dtype, quick)
    theirs = as_diffusers(ours)
    video, latent = inputs(ours, TINY if quick else TIMED)
    seconds = interleaved(
        {
            "encode": lambda: ours.encode(video),
            "diffusers_encode": lambda: theirs._encode(video),
            "decode": lambda: ours.decode(latent),
            "diffusers_decode": lambda: theirs._decode(latent),
        },
        rounds=1 if quick else 5,
    )
    # The layers' own work is that of the reference: ours doubles and convolves in fewer operations.
    passes = {"encode": lambda: theirs._encode(video), "decode": lambda: theirs._decode(latent)}
    work = {way: convolutions(run) for way, run in passes.items()}
    seen = [*work.values(), convolutions(lambda: ours.encode(video)), convolutions(lambda: ours.decode(latent))]
    rate = best_rate(sum(seen, Counter()), getattr(torch, dtype), quick)
    pairs = (
        (ours.encode(video), theirs._encode(video)),
        (ours.decode(latent).clamp(-1, 1), theirs._decode(latent).sample),  # theirs comes clamped
    )
    return {
        "seconds": rounded(seconds),
        "times_faster": {way: ratio(seconds[f"diffusers_{way}"], seconds[way]) for way in work},
        "conv_gflop": {way: round(flops(seen) / 1e9, 2) for way, seen in work.items()},
        "best_conv_gflop_per_second": round(rate / 1e9, 1),
        "roofline_share": {
            name: round(flops(work[name.removeprefix("diffusers_")]) / value / rate, 3)
            for name, value in seconds.items()
        },
        "relative_difference": float(f"{max(relative_difference(*pair) for pair in pairs):.2g}"),
    }


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference, over that of ``b``."""
    a, b = a.float(), b.float()
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def one_pass(side: str, way: str, dtype: str, quick: bool) -> Callable[[], None]:
    """For :func:`in_fresh_process`: one encode or decode of the larger clip."""
    ours = build(dtype, quick)
    video, latent = inputs(ours, TINY if quick else MEASURED)
    vae: Any = ours
    if side == "diffusers":
        vae = as_diffusers(ours)
    del ours
    run = {
        ("pyratok_steps", "encode"): lambda: by_step(vae.encode, video, vae.config.latent_stride[0]),
        ("pyratok_steps", "decode"): lambda: by_step(vae.decode, latent, 1),
        ("pyratok", "encode"): lambda: vae.encode(video),
        ("pyratok", "decode"): lambda: vae.decode(latent),
        ("diffusers", "encode"): lambda: vae._encode(video),
        ("diffusers", "decode"): lambda: vae._decode(latent),
    }[side, way]

    @torch.no_grad()
    def work() -> None:
        run()

    return work


def by_step(run: Callable[[Tensor, Carry], Tensor], clip: Tensor, stride: int) -> Tensor:
    """``clip`` a latent step at a time: its first frame, then ``stride`` frames each."""
    parts, tails = list[Tensor](), None
    for part in (clip[:, :, :1], *clip[:, :, 1:].split(stride, dim=2)):
        carry, tails = Carry(tails), None  # the pass lets go of the old state as it makes the new one
        parts.append(run(part, carry))
        tails = carry.tails()
    return torch.cat(parts, dim=2)


def memory(dtype: str, quick: bool) -> dict[str, Any]:
    """Peak memory of each side and direction in MiB, weights and libraries included, and their quotient."""
    found: dict[str, Any] = {}
    for way in ("encode", "decode"):
        whole, steps, theirs = (
            in_fresh_process(one_pass, side=side, way=way, dtype=dtype, quick=quick)["peak_mib"]
            for side in ("pyratok", "pyratok_steps", "diffusers")
        )
        found[way] = {
            "pyratok_mib": whole,
            "pyratok_steps_mib": steps,
            "diffusers_mib": theirs,
            "share_of_diffusers": round(whole / theirs, 3),
            "share_of_diffusers_by_steps": round(steps / theirs, 3),
        }
    return found


def main() -> None:
    options = parser(__doc__).parse_args()
    result = {
        "clip": TINY if options.quick else TIMED,
        "memory_clip": TINY if options.quick else MEASURED,
        "results": {dtype: compare(dtype, options.quick) for dtype in DTYPES},
        "memory": {dtype: memory(dtype, options.quick) for dtype in DTYPES},
    }
    publish("wan", result, options)


if __name__ == "__main__":
    main()
