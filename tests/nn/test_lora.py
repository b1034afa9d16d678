from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyratok.nn.lora import LoRAConfig, adapted_layers, inject, merge
from pyratok.vae.wan_blocks import CausalConv3d
from tiny import random_video, tiny_pyratok

CONFIG = LoRAConfig(rank=3, alpha=6.0)
LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(6, 5), (2, 6)),
    (nn.Conv2d(6, 5, 3), (2, 6, 7, 7)),
    (nn.Conv3d(6, 5, (1, 3, 3), stride=2), (2, 6, 3, 7, 7)),
    (CausalConv3d(6, 5, 3, padding=1), (2, 6, 3, 7, 7)),
]
every_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda x: type(x).__name__)


def adapted(layer: nn.Module) -> nn.Sequential:
    module = nn.Sequential(copy.deepcopy(layer))
    assert inject(module, CONFIG) == ["0"]
    return module


def trained(module: nn.Module) -> nn.Module:
    """As if training had moved the adapters."""
    for name, parameter in module.named_parameters():
        if name.endswith(".up"):
            nn.init.normal_(parameter, std=0.3)
    return module


@every_layer
def test_a_fresh_adapter_is_the_identity(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert torch.equal(adapted(layer)(x), layer(x))


@every_layer
def test_merging_keeps_the_outputs(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    module = trained(adapted(layer))
    before = module(x)
    assert not torch.allclose(before, layer(x))
    merge(module)
    assert not adapted_layers(module)
    assert set(module.state_dict()) == {"0.weight", "0.bias"}
    torch.testing.assert_close(module(x), before, atol=1e-5, rtol=0)


@every_layer
def test_merging_a_copy_leaves_the_original_adapted(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    module = trained(adapted(layer))
    before = module(x)
    for _ in range(2):
        merged = merge(copy.deepcopy(module))
        assert not adapted_layers(merged)
        assert list(adapted_layers(module)) == ["0"]
        assert torch.equal(module(x), before)


@every_layer
def test_only_the_adapter_learns(layer: nn.Module, shape: tuple[int, ...]) -> None:
    module = trained(adapted(layer))
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    assert list(frozen) == ["0.parametrizations.weight.original"]
    module(torch.randn(shape)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == (name in frozen)
    assert torch.equal(frozen["0.parametrizations.weight.original"], layer.weight)  # type: ignore[arg-type]


def test_a_step_of_training_moves_the_output() -> None:
    module = adapted(nn.Linear(6, 5))
    x, y = torch.randn(8, 6), torch.randn(8, 5)

    def loss() -> Tensor:
        out: Tensor = (module(x) - y).square().mean()
        return out

    before = loss()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss() < before


def test_rank_is_bounded_by_the_layer() -> None:
    module = nn.Sequential(nn.Linear(4, 2))
    inject(module, LoRAConfig(rank=16))
    shapes = {name.split(".")[-1]: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["down"] == (2, 4)
    assert shapes["up"] == (2, 2)


def test_unmatched_target_is_an_error_and_adapts_nothing() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for targets in (("0", "1"), ("2",)):
        with pytest.raises(ValueError, match=f"'{targets[-1]}' matches no linear or convolution"):
            inject(module, CONFIG, targets)
        assert not adapted_layers(module)


def test_targets_may_overlap() -> None:
    module = nn.ModuleDict({"conv_in": nn.Linear(4, 4), "conv_out": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
    assert inject(module, CONFIG, ("conv", "conv_in")) == ["conv_in", "conv_out"]
    assert set(adapted_layers(module)) == {"conv_in", "conv_out"}


def test_rank_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        LoRAConfig(rank=0)


def test_encoder_of_a_tokenizer() -> None:
    model, video = tiny_pyratok(), random_video()
    plain = model.vae.encode_taps(video)
    names = inject(model.vae.encoder, CONFIG, ("conv_in", "down_blocks", "mid_block"))
    assert len(names) > 5
    assert all(torch.equal(a, b) for a, b in zip(plain, model.vae.encode_taps(video), strict=True))
    moved = trained(model).vae.encode_taps(video)  # type: ignore[union-attr,operator]
    merged = merge(copy.deepcopy(model)).vae.encode_taps(video)  # type: ignore[union-attr,operator]
    assert not torch.allclose(plain[-1], moved[-1])
    torch.testing.assert_close(merged, moved, atol=1e-5, rtol=1e-5)
