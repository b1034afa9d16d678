"""Reconstruction, compression and generated videos on miniatures in the layouts of their datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fakes import FakeTokenizer, moving_video
from pyratok.codec.container import save_tokens
from pyratok.data.video_io import load_video, save_video
from pyratok.eval.benchmarks.compression import CodedItem, file_bits
from pyratok.eval.benchmarks.networks import I3D, ClipImages, sha256_of
from pyratok.eval.benchmarks.registry import Options, build
from pyratok.eval.runner import run_benchmark
from pyratok.metrics.frechet import feature_statistics, frechet_distance
from pyratok.metrics.reconstruction import psnr

SMALL = {"size": "48", "crop": "48", "frames": "5", "perceptual": "none"}


class Means(nn.Module):
    """Called as the I3D of StyleGAN-V is: the mean colour of the first and of the last frame."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        assert return_features
        assert not rescale
        assert not resize
        return torch.cat([x[:, :, 0].mean(dim=(2, 3)), x[:, :, -1].mean(dim=(2, 3))], dim=1)


@pytest.fixture
def i3d(tmp_path: Path) -> Path:
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Means()).save(str(path))
    return path


def model() -> FakeTokenizer:
    return FakeTokenizer().eval()


def save(path: Path, frames: int = 6, seed: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.rand(1, 3, frames, 1, 1, generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.2
    written = path.with_suffix(".mp4")  # what is inside counts, not what a file is called
    save_video((moving_video(frames, *size).plain() * 0.7 + noise).clamp(-1, 1), written, fps=12.0)
    return written.rename(path)


def webvid(folder: Path, frames: int = 6) -> Path:
    folder.mkdir()
    rows = ["videoid,contentUrl,duration,page_dir,name"]
    rows += [f"{100 + i},https://x/{i}.mp4,PT00H00M10S,000001_000050,A frog jumps {i}" for i in range(4)]
    (folder / "results_10M_val.csv").write_text("\n".join(rows) + "\n")
    for i in range(3):
        save(folder / "000001_000050" / f"{100 + i}.mp4", frames=frames - 2 * (i == 2), seed=i)
    return folder


def test_webvid(tmp_path: Path, i3d: Path) -> None:
    options = Options(settings={**SMALL, "frames": "12"}, networks={"i3d": i3d})
    benchmark = build("webvid", webvid(tmp_path / "data", 12), options)
    with pytest.warns(UserWarning, match="3 samples of 6 features"):
        record = run_benchmark(benchmark, model, tmp_path / "out")
    assert record.missing == ("000001_000050/103.mp4",)
    values = record.scores.values
    assert set(values) == {"bits_per_pixel", "psnr", "psnr_video", "ssim", "rfvd"}
    assert values["psnr"] >= values["psnr_video"] > 15
    assert values["rfvd"] >= 0
    assert record.scores.details == {"clips_with_fewer_frames": 1}
    assert record.to_dict()["protocol"]["i3d"] == sha256_of(i3d)


def test_the_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    data = webvid(tmp_path / "data")
    record = run_benchmark(build("webvid", data, Options(settings=SMALL)), model, tmp_path / "out", limit=1)
    item = next(
        i for i in build("webvid", data).load().items if i.key in (tmp_path / "out/answers-1-of-1.jsonl").read_text()
    )
    video = load_video(item.path, size=48, crop=48, frames=5)
    tokens = model().encode(video)
    assert record.scores.values["psnr"] == pytest.approx(psnr(model().decode(tokens), video).item())
    fewer = build("webvid", data, Options(settings={**SMALL, "levels": "1"}))
    assert (
        run_benchmark(fewer, model, tmp_path / "fewer", limit=1).scores.values["bits_per_pixel"] < tokens.bits_per_pixel
    )


def test_coco(tmp_path: Path) -> None:
    (tmp_path / "data" / "val2017").mkdir(parents=True)
    for i in range(2):
        save_video(moving_video(1, 48 + 16 * i, 64, fps=None), tmp_path / "data" / "val2017" / f"{i:012d}.jpg")
    benchmark = build("coco", tmp_path / "data", Options(settings=SMALL))
    with pytest.raises(ValueError, match="2 images where coco has 5,000"):
        run_benchmark(benchmark, model, tmp_path / "out")
    record = run_benchmark(benchmark, model, tmp_path / "out", any_revision=True)
    assert record.scored == 2
    assert record.scores.values["psnr"] > 15


def test_networks_are_named_and_never_guessed(tmp_path: Path, i3d: Path) -> None:
    data = webvid(tmp_path / "data")
    with pytest.raises(ValueError, match=r"alexnet-owt-7be5be79.pth.*--network lpips=FILE"):
        build("webvid", data, Options(settings={"perceptual": "lpips"}))
    with pytest.raises(ValueError, match="perceptual is one of st_lpips, lpips, none"):
        build("webvid", data, Options(settings={"perceptual": "vgg"}))
    assert build("webvid", data, Options(networks={"lpips": i3d})).protocol.perceptual == "lpips"
    with pytest.raises(ValueError, match="no such file"):
        build("webvid", data, Options(networks={"i3d": tmp_path / "nowhere.pt"}))
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ValueError, match=r"text.pt: not a TorchScript archive"):
        I3D(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="at least 10 frames, got 5"):
        I3D(i3d).features(torch.zeros(1, 3, 5, 32, 32))
    with pytest.raises(
        ValueError, match=r"i3d_torchscript.pt: not CLIP's vision transformer: there is no visual.conv1"
    ):
        ClipImages.load(i3d)


def test_compression(tmp_path: Path) -> None:
    save(tmp_path / "data" / "videoSRC01.mp4", size=(64, 96))
    save(tmp_path / "data" / "videoSRC02.mp4", size=(64, 96), seed=1)
    crfs = {"x264_crf": [20, 36], "x265_crf": [20, 28, 36, 44], "svtav1_crf": [30, 50]}
    options = Options(settings={"size": "64", "frames": "5"} | {name: str(points) for name, points in crfs.items()})
    record = run_benchmark(build("compression", tmp_path / "data", options), model, tmp_path / "out")
    curves = record.scores.details["curves"]
    assert [point["levels"] for point in curves["pyra"]] == [1, 2, 3]
    for codec in ("x264", "x265", "svtav1"):
        assert [point["crf"] for point in curves[codec]] == crfs[f"{codec}_crf"]
        for name in ("bits_per_pixel", "psnr", "ssim"):
            values = [point[name] for point in curves[codec]]
            assert values == sorted(values, reverse=True)
        # Three levels are too few points for a Bjontegaard delta.
        for suffix in ("", "_by_ssim"):
            assert "at least 4 points" in record.scores.details[f"no_bd_rate_to_{codec}{suffix}"]
    assert record.scores.values["bits_per_pixel"] == curves["pyra"][-1]["bits_per_pixel"]


def points(rates: list[float], psnr: list[float]) -> list[dict[str, float]]:
    return [{"bits_per_pixel": r, "psnr": p, "ssim": p / 50} for r, p in zip(rates, psnr, strict=True)]


@pytest.mark.filterwarnings("ignore:the curves share only")
def test_a_codec_that_needs_half_the_bits_has_a_bd_rate_of_100_percent(tmp_path: Path) -> None:
    """In PSNR and in SSIM alike; and against itself none."""
    rates, quality = [0.1, 0.2, 0.3, 0.4], [30.0, 33.0, 35.0, 36.0]
    curves = {"pyra": points(rates, quality), "x264": points([r / 2 for r in rates], quality)}
    curves["x265"] = curves["pyra"]
    benchmark = build("compression", tmp_path)
    item = CodedItem(key="a", path=tmp_path)
    values = benchmark.score([(item, {"curves": curves})]).values
    assert values["bd_rate_percent_to_x264"] == pytest.approx(100)
    assert values["bd_rate_percent_to_x264_by_ssim"] == pytest.approx(100)
    assert values["bd_rate_percent_to_x265"] == pytest.approx(0)
    assert values["bd_psnr_to_x265"] == pytest.approx(0)
    assert values["bd_psnr_to_x264"] < 0


def test_compression_without_an_encoder_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "data" / "videoSRC01.mp4", size=(64, 96))
    monkeypatch.setattr("av.codecs_available", {"libx264", "libx265"})
    with pytest.raises(ValueError, match=r"has no libsvtav1.*without its curve: --set svtav1_crf=\[\]"):
        run_benchmark(build("compression", tmp_path / "data"), model, tmp_path / "out")
    few = {"size": "64", "frames": "2", "x264_crf": "[]", "x265_crf": "[30]", "svtav1_crf": "[]"}
    record = run_benchmark(build("compression", tmp_path / "data", Options(settings=few)), model, tmp_path / "x265")
    assert set(record.scores.details["curves"]) == {"pyra", "x265"}


def test_rates_count_the_whole_file(tmp_path: Path) -> None:
    tokens = model().encode(moving_video(5, 48, 64))
    save_tokens(tokens, tmp_path / "x.pyra")
    assert file_bits(tokens) == 8 * (tmp_path / "x.pyra").stat().st_size
    assert file_bits(tokens) > tokens.num_tokens * tokens.num_bits


def ucf(folder: Path, train: bool = True) -> Path:
    for i in range(4):
        save(folder / "generated" / f"sample{i:05d}.mp4", frames=12, seed=10 + i)
    names = [f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{8 + i:02d}_c01.avi" for i in range(4)]
    for i, name in enumerate(names[:3]):
        save(folder / "real" / "UCF-101" / name, frames=12, seed=i)
    save(folder / "real" / "UCF-101" / "ApplyEyeMakeup" / "v_ApplyEyeMakeup_g01_c01.avi", frames=12, seed=9)
    if train:
        (folder / "real" / "trainlist01.txt").write_text("".join(f"{name} 1\n" for name in names))
    return folder


@pytest.mark.filterwarnings("ignore:.*samples of 6 features")
def test_gfvd(tmp_path: Path, i3d: Path) -> None:
    settings = {"samples": "3", "frames": "12", "size": "48"}
    data = ucf(tmp_path / "data")
    benchmark = build("ucf101-gfvd", data, Options(settings=settings, networks={"i3d": i3d}))
    with pytest.raises(ValueError, match="4 real where ucf101-gfvd has 9,537"):
        run_benchmark(benchmark, lambda: pytest.fail("no model is needed"), tmp_path / "out")
    record = run_benchmark(benchmark, lambda: pytest.fail("no model is needed"), tmp_path / "out", any_revision=True)
    assert record.model is None
    assert record.missing == ("ApplyEyeMakeup/v_ApplyEyeMakeup_g11_c01.avi",)
    assert record.scores.details == {"real": 3, "generated": 3}

    def features(paths: list[Path]) -> Tensor:
        clips = [load_video(path, size=48, crop=48, frames=12).plain() for path in paths]
        return torch.cat([I3D(i3d).features(clip) for clip in clips])

    real = sorted((data / "real" / "UCF-101" / "ApplyEyeMakeup").glob("*g0[89]*")) + sorted(
        (data / "real" / "UCF-101" / "ApplyEyeMakeup").glob("*g10*")
    )
    made = sorted((data / "generated").glob("*.mp4"))[:3]
    distance = frechet_distance(feature_statistics(features(real)), feature_statistics(features(made)))
    assert record.scores.values["gfvd"] == pytest.approx(distance, rel=1e-6)


def test_samples_are_never_repeated(tmp_path: Path, i3d: Path) -> None:
    data = ucf(tmp_path / "data", train=False)
    with pytest.raises(ValueError, match=r"takes 10,000 samples, .*generated holds 4; .*--set samples=4"):
        build("ucf101-gfvd", data).load()
    with pytest.raises(ValueError, match=r"needs the I3D network: fetch i3d_torchscript.pt.*--network i3d=FILE"):
        build("ucf101-gfvd", data).run(None)


class VisionTower(nn.Module):
    """Parameters by the names of OpenAI's archive: two layers of width 64, patches of 8, pictures of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Module()
        v, width = self.visual, 64
        v.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        v.class_embedding = nn.Parameter(torch.randn(width))
        v.positional_embedding = nn.Parameter(torch.randn(17, width))
        v.ln_pre, v.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        v.proj = nn.Parameter(torch.randn(width, 16) / 8)
        v.transformer = nn.Module()
        v.transformer.resblocks = nn.ModuleList()
        for _ in range(2):
            block = nn.Module()
            block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.attn = nn.MultiheadAttention(width, 1)
            block.mlp = nn.Module()
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            v.transformer.resblocks.append(block)


def test_clip_is_what_torch_makes_of_its_weights() -> None:
    tower = VisionTower().eval()
    clip = ClipImages(tower.state_dict())
    assert clip.side == 32
    frames = torch.rand(2, 3, 32, 32) * 2 - 1
    v = tower.visual
    mean, std = (
        torch.tensor(x).view(3, 1, 1)
        for x in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    with torch.no_grad():
        x = v.conv1(((frames + 1) / 2 - mean) / std).flatten(2).transpose(1, 2)
        x = v.ln_pre(torch.cat([v.class_embedding.expand(2, 1, -1), x], 1) + v.positional_embedding)
        for block in v.transformer.resblocks:
            y = block.ln_1(x).transpose(0, 1)
            x = x + block.attn(y, y, y, need_weights=False)[0].transpose(0, 1)
            y = block.mlp.c_fc(block.ln_2(x))
            x = x + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
        wanted = v.ln_post(x[:, 0]) @ v.proj
    torch.testing.assert_close(clip.embed(frames), wanted, rtol=1e-4, atol=1e-4)
    assert clip.embed(torch.zeros(3, 3, 40, 72)).shape == (3, 16)


@pytest.mark.filterwarnings("ignore:.*samples of 6 features")
def test_text_to_video(tmp_path: Path, i3d: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        save(tmp_path / "data" / "generated" / f"{i}.mp4", frames=12, seed=i)
        save(tmp_path / "data" / "real" / "a" / f"{i}.mp4", frames=12, seed=i)
    save(tmp_path / "data" / "real" / "a" / "short.mp4", frames=4)
    tower = ClipImages(VisionTower().state_dict())
    monkeypatch.setattr(ClipImages, "load", lambda path: tower)
    options = Options(settings={"frames": "12", "size": "48"}, networks={"i3d": i3d, "clip": i3d})
    record = run_benchmark(build("webvid-t2v", tmp_path / "data", options), model, tmp_path / "out")
    assert record.scores.values["fvd"] == pytest.approx(0, abs=1e-5)
    assert -100 <= record.scores.values["tc"] <= 100
    assert list(record.unreadable) == ["real/a/short.mp4"]
