import io
import math

import av
import numpy as np
import pytest

from pyratok.metrics.codecs import CODECS, Codec, UnreachableRateError, encode, encode_at_bpp, x265_at_bpp

X264, X265, SVTAV1 = CODECS["x264"], CODECS["x265"], CODECS["svtav1"]


@pytest.fixture(params=CODECS.values(), ids=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    if request.param.encoder not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {request.param.encoder}")
    return request.param


def moving_blobs(frames: int = 9, height: int = 64, width: int = 64) -> np.ndarray:
    """Smooth coloured waves in motion, uint8 [T, H, W, 3]."""
    t, y, x, c = np.meshgrid(*(np.arange(n) for n in (frames, height, width, 3)), indexing="ij")
    wave = np.sin((x + 2 * t) / 7 + c) * np.cos((y - t) / 9 - 2 * c)
    return np.round(127.5 + 100 * wave).astype(np.uint8)


def rgb_psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-10))


def test_the_bytes_are_the_video(codec: Codec) -> None:
    frames = moving_blobs()
    data, decoded = encode(codec, frames, fps=25, crf=20)
    assert decoded.shape == frames.shape
    assert decoded.dtype == np.uint8
    assert rgb_psnr(decoded, frames) > 35
    with av.open(io.BytesIO(data), format=codec.stream) as container:
        again = list(container.decode(video=0))
    assert len(again) == len(frames)
    assert again[0].colorspace == av.video.reformatter.Colorspace.ITU709
    assert b"x265 (build" not in data
    assert b"x264 - core" not in data


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64), (32, 32), (16, 16), (9, 33), (40, 70)])
def test_encoding_is_repeatable(codec: Codec, height: int, width: int) -> None:
    frames = moving_blobs(5, height, width)
    assert len({encode(codec, frames, 25, 30)[0] for _ in range(3)}) == 1


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (40, 90, 200)])
def test_colours_survive(codec: Codec, colour: tuple[int, int, int]) -> None:
    frames = np.broadcast_to(np.array(colour, dtype=np.uint8), (2, 32, 32, 3))
    _, decoded = encode(codec, frames, fps=25, crf=0)
    assert np.abs(decoded.astype(int) - frames).max() <= 3


def test_chroma_stays_in_place(codec: Codec) -> None:
    x = np.linspace(0, 255, 64)
    ramp = np.stack([x, x[::-1], np.full(64, 128)], axis=-1).round().astype(np.uint8)
    frames = np.broadcast_to(ramp, (1, 64, 64, 3))
    _, decoded = encode(codec, frames, fps=25, crf=0)
    error = decoded.astype(float) - frames
    assert np.abs(error[:, :, 2:-2].mean(axis=(0, 1, 2))).max() < 0.7
    assert rgb_psnr(decoded, frames) > 45


def test_full_chroma_is_at_least_as_good() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    half, full = (encode(X265, frames, 25, 0, pixel_format=f)[1] for f in ("yuv420p", "yuv444p"))
    assert rgb_psnr(full, frames) > rgb_psnr(half, frames) + 10


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 33), (3, 15, 16), (1, 17, 18)])
def test_any_size(codec: Codec, shape: tuple[int, int, int]) -> None:
    frames = moving_blobs(*shape)
    _, decoded = encode(codec, frames, fps=29.97, crf=5)
    assert decoded.shape == frames.shape
    assert rgb_psnr(decoded, frames) > 30


def test_finer_quantization_costs_more_and_looks_better(codec: Codec) -> None:
    frames = moving_blobs()
    results = [encode(codec, frames, 25, crf) for crf in (15, 27, 39)]
    sizes = [len(data) for data, _ in results]
    qualities = [rgb_psnr(decoded, frames) for _, decoded in results]
    assert sizes == sorted(sizes, reverse=True)
    assert qualities == sorted(qualities, reverse=True)


@pytest.mark.parametrize("bpp", [0.15, 0.5])
def test_rate_search(codec: Codec, bpp: float) -> None:
    frames = moving_blobs()
    point = encode_at_bpp(codec, frames, 25, bpp)
    data, decoded = encode(codec, frames, 25, point.crf)
    assert point.bpp == 8 * len(data) / (9 * 64 * 64)
    assert 0.9 * bpp < point.bpp <= bpp
    per_frame = [rgb_psnr(*pair) for pair in zip(decoded, frames, strict=True)]
    assert point.psnr == pytest.approx(np.mean(per_frame), abs=0.01)
    assert 0 < point.ssim <= 1


def test_rate_search_at_the_ends(codec: Codec) -> None:
    frames = moving_blobs(2, 32, 32)
    assert encode_at_bpp(codec, frames, 25, 100.0).crf < 2
    with pytest.raises(UnreachableRateError, match=f"{codec.name} needs at least"):
        encode_at_bpp(codec, frames, 25, 0.001)


def test_the_anchor_is_x265() -> None:
    frames = moving_blobs(2, 32, 32)
    assert x265_at_bpp(frames, 25, 1.0) == encode_at_bpp(X265, frames, 25, 1.0)


def test_an_encoder_that_ffmpeg_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"libx264", "libx265"})
    with pytest.raises(ValueError, match="has no libsvtav1; leave svtav1 out, or install the wheel of PyAV"):
        encode(SVTAV1, moving_blobs(1, 16, 16), 25, 30)


def test_wrong_arguments() -> None:
    frames = moving_blobs(1, 16, 16)
    for bad in (frames.astype(np.float32), frames[0], frames[..., :1], frames[:0]):
        with pytest.raises(ValueError, match="uint8 frames"):
            encode(X265, bad, 25, 30)
    for codec in CODECS.values():
        for crf in (-1, codec.max_crf + 1, math.nan):
            with pytest.raises(ValueError, match=f"crf of {codec.name}"):
                encode(codec, frames, 25, crf)
    with pytest.raises(ValueError, match=r"a whole number between 0 and 63, got 30\.5"):
        encode(SVTAV1, frames, 25, 30.5)
    for fps in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="fps"):
            encode(X265, frames, fps, 30)
    with pytest.raises(ValueError, match="libx265"):
        encode(X265, frames, 25, 30, preset="warp")
