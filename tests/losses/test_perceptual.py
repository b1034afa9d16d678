import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyratok
from pyratok.losses import PerceptualLoss, perceptual
from pyratok.losses.perceptual import MIN_SIDE, BlurPool, BlurredConv, lpips, st_lpips

needs_st_lpips = pytest.mark.skipif(find_spec("stlpips_pytorch") is None, reason="needs pip install pyratok[train]")
needs_heads = pytest.mark.skipif(find_spec("torchmetrics") is None, reason="needs pip install pyratok[train]")


def videos(*shape: int, seed: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(shape, generator=generator) * 2 - 1
    return first, torch.rand(shape, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def loss() -> PerceptualLoss:
    """A small random network of the same kind."""
    torch.manual_seed(0)
    stages = [
        nn.Sequential(BlurredConv(3, 4), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True)),
    ]
    return PerceptualLoss("toy", stages, [torch.rand(4), torch.rand(6)])


def backbone_file(folder: Path, network: str) -> Path:
    """Random weights under torchvision's names."""
    torch.manual_seed(0)
    spec = perceptual._NETWORKS[network]
    layers = [m for stage in spec.build() for m in stage.modules() if isinstance(m, nn.Conv2d)]
    state = {
        f"features.{name}.{kind}": value
        for name, layer in zip(spec.convolutions, layers, strict=True)
        for kind, value in layer.state_dict().items()
    }
    path = folder / f"{network}.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, path)
    return path


@needs_st_lpips
def test_golden_value_of_st_lpips() -> None:
    # computed once by the authors' own package on the same input
    first, second = videos(1, 3, 2, 48, 70)
    metric = st_lpips()
    assert metric.name == "st_lpips"
    golden = torch.tensor([[0.037190743, 0.039327357]])
    torch.testing.assert_close(metric.per_frame(first, second), golden, atol=1e-6, rtol=0)
    golden = torch.tensor([[0.067732431, 0.074692734]])
    torch.testing.assert_close(metric.per_frame(first, first * 0.5), golden, atol=1e-6, rtol=0)


@needs_st_lpips
@pytest.mark.parametrize("side", range(MIN_SIDE, MIN_SIDE + 2))
def test_smallest_frames(side: int) -> None:
    first, second = videos(1, 3, 1, side, side)
    assert st_lpips()(first, second) > 0


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 40), (35, 37), (64, 33)])
def test_fused_first_layer_equals_its_two_steps(height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = BlurredConv(3, 5).double()
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.blur(layer.conv(x)), atol=1e-6, rtol=0)


def test_blur_keeps_constants() -> None:
    x = torch.full((1, 3, 9, 8), 0.7)
    torch.testing.assert_close(BlurPool(3)(x), torch.full((1, 3, 6, 5), 0.7))


def test_the_definition() -> None:
    first, second = videos(1, 3, 1, 32, 32)
    head = torch.tensor([1.0, 2.0, 3.0])
    toy = PerceptualLoss("toy", [nn.Identity()], [head])
    a, b = ((x[:, :, 0] - toy.shift) / toy.scale for x in (first, second))
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    wanted = ((a - b) ** 2 * head.view(3, 1, 1)).sum(1).mean()
    torch.testing.assert_close(toy(first, second), wanted)


def test_distance_of_equal_frames_is_zero_and_order_does_not_matter(loss: PerceptualLoss) -> None:
    first, second = videos(2, 3, 3, 32, 40)
    assert loss(first, first).item() == 0
    assert (loss.per_frame(first, second) > 0).all()
    torch.testing.assert_close(loss.per_frame(first, second), loss.per_frame(second, first))


def test_gradient_reaches_the_reconstruction_alone(loss: PerceptualLoss) -> None:
    reconstruction, target = (x.requires_grad_() for x in videos(1, 3, 2, 32, 32))
    loss(reconstruction, target).backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert target.grad is None
    assert not any(p.requires_grad for p in loss.parameters())


def test_a_gradient_step_helps(loss: PerceptualLoss) -> None:
    reconstruction, target = videos(1, 3, 1, 32, 32)
    reconstruction.requires_grad_()
    before = loss(reconstruction, target)
    (gradient,) = torch.autograd.grad(before, reconstruction)
    assert loss(reconstruction - 0.1 * gradient / gradient.norm(), target) < before


def test_dead_features_have_finite_gradients() -> None:
    stage = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    nn.init.constant_(stage[0].bias, -100)  # type: ignore[arg-type]
    dead = PerceptualLoss("dead", [stage], [torch.ones(2)])
    reconstruction, target = videos(1, 3, 1, 32, 32)
    dead(reconstruction.requires_grad_(), target).backward()
    assert reconstruction.grad is not None
    assert torch.equal(reconstruction.grad, torch.zeros_like(target))


def test_frames_are_sampled(loss: PerceptualLoss) -> None:
    first, second = videos(1, 3, 6, 32, 32)
    per_frame = loss.per_frame(first, second)[0]
    sampled = PerceptualLoss("toy", list(loss.stages), list(loss.heads), frames_per_clip=1)
    seen = {min(range(6), key=lambda i: abs(per_frame[i] - sampled(first, second)).item()) for _ in range(40)}
    assert len(seen) > 2
    torch.manual_seed(1)
    again = sampled(first, second)
    torch.manual_seed(1)
    assert torch.equal(sampled(first, second), again)
    sampled.frames_per_clip = 9
    torch.testing.assert_close(sampled(first, second), per_frame.mean())
    with pytest.raises(ValueError, match="frames_per_clip"):
        PerceptualLoss("toy", [], [], frames_per_clip=0)


def test_bfloat16_autocast_stays_close(loss: PerceptualLoss) -> None:
    first, second = videos(1, 3, 1, 32, 32)
    wanted = loss(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(first.bfloat16(), second.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0)


@needs_heads
@pytest.mark.parametrize(("network", "name"), [("alex", "lpips"), ("vgg", "lpips_vgg")])
def test_lpips_from_a_torchvision_file(network: str, name: str, tmp_path: Path) -> None:
    metric = lpips(backbone_file(tmp_path, network), network)  # type: ignore[arg-type]
    first, second = videos(1, 3, 2, 32, 32)
    assert metric.name == name
    assert metric(first, second) > 0 == metric(first, first)


@needs_heads
def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = backbone_file(tmp_path, "alex")
    good = torch.load(path, weights_only=True)
    damaged = {
        "missing": {k: v for k, v in good.items() if k != "features.8.bias"},
        "not part of it": good | {"features.99.weight": torch.zeros(1)},
        "shape": good | {"features.8.bias": torch.zeros(3)},
        "expected a dictionary": [1, 2],
    }
    for message, state in damaged.items():
        torch.save(state, path)
        with pytest.raises(ValueError, match=message):
            lpips(path)
    for content in (b"", b"PK", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            lpips(path)
    torch.save({"model": nn.Identity()}, path)
    with pytest.raises(ValueError, match="damaged"):
        lpips(path)
    with pytest.raises(ValueError, match="no weights"):
        lpips(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="network"):
        lpips(path, "squeeze")  # type: ignore[arg-type]


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    for build in (st_lpips, lambda: lpips(backbone_file(tmp_path, "alex"))):
        with pytest.raises(ImportError, match=r"pip install pyratok\[train\]"):
            build()


def test_wrong_videos(loss: PerceptualLoss) -> None:
    first, second = videos(1, 3, 2, 32, 32)
    for call in (loss, loss.per_frame):
        with pytest.raises(ValueError, match="same shape"):
            call(first[:, :, :1], second)
        with pytest.raises(ValueError, match="at least 32x32"):
            call(first[..., :31], second[..., :31])


def test_import_is_light() -> None:
    code = (
        "import sys, pyratok.losses; "
        "print(sorted({'torchvision', 'stlpips_pytorch', 'torchmetrics'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(pyratok.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
