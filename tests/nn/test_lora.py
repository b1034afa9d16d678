from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyratok.nn.lora import LoRAConfig, adapted_layers, adapter, base_weight, inject, merge, unmerge
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


def test_rank_is_the_same_in_a_narrow_layer() -> None:
    delta = adapter(adapted(nn.Linear(2, 1))[0])
    assert (delta.down.shape, delta.up.shape) == ((3, 2), (1, 3))


def test_a_layer_is_adapted_once() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    inject(module, CONFIG, ("1",))
    with pytest.raises(ValueError, match="have an adapter already, such as 1; merge it first"):
        inject(module, CONFIG)
    assert list(adapted_layers(module)) == ["1"]


@every_layer
def test_unmerging_brings_everything_back_bit_for_bit(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    module = trained(adapted(layer))
    before, state, parameters = module(x), copy.deepcopy(module.state_dict()), dict(module.named_parameters())
    for _ in range(3):
        assert unmerge(merge(module)) is module
        assert torch.equal(module(x), before)
        assert module.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        # An optimiser goes on with the parameters it knows.
        assert all(p is parameters[name] for name, p in module.named_parameters())
    assert torch.equal(base_weight(module[0]), layer.weight)  # type: ignore[index,arg-type]
    assert not base_weight(module[0]).requires_grad  # type: ignore[index]


def test_a_copy_of_a_merged_module_unmerges_alone() -> None:
    module = trained(adapted(nn.Linear(6, 5)))
    merged = merge(copy.deepcopy(module))
    other = unmerge(copy.deepcopy(merged))
    assert torch.equal(base_weight(other[0]), base_weight(module[0]))  # type: ignore[index]
    assert not adapted_layers(merged)
    assert list(adapted_layers(other)) == ["0"]


def test_unmerging_follows_a_change_of_type() -> None:
    module = trained(adapted(nn.Linear(6, 5)))
    base = base_weight(module[0]).clone()  # type: ignore[index]
    unmerge(merge(module).to(torch.bfloat16))
    assert torch.equal(base_weight(module[0]), base.bfloat16())  # type: ignore[index]
    assert module[0].weight.dtype == torch.bfloat16  # type: ignore[index]


def test_without_adapters_merging_and_unmerging_do_nothing() -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    weight = module[0].weight.clone()
    assert torch.equal(unmerge(merge(module))[0].weight, weight)  # type: ignore[index]


def test_a_new_adapter_on_a_merged_layer_makes_the_merge_final() -> None:
    module = merge(trained(adapted(nn.Linear(6, 5))))
    merged = module[0].weight.clone()  # type: ignore[index]
    inject(module, CONFIG)
    unmerge(module)
    assert torch.equal(base_weight(module[0]), merged)  # type: ignore[index]


PEFT_LAYERS = [
    *LAYERS[:3],
    (nn.Conv2d(6, 5, 1, bias=False), (2, 6, 4, 4)),
    (nn.Conv3d(6, 5, 3, padding=1), (2, 6, 3, 5, 5)),
    (nn.Conv3d(6, 5, 1), (2, 6, 3, 4, 4)),
    (nn.Linear(2, 1), (4, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), PEFT_LAYERS, ids=str)
def test_parity_with_peft(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """The same outputs and gradients from the same factors, and the same merged weight."""
    peft = pytest.importorskip("peft")
    x = torch.randn(shape)
    theirs = peft.get_peft_model(
        nn.Sequential(copy.deepcopy(layer)),
        peft.LoraConfig(r=CONFIG.rank, lora_alpha=CONFIG.alpha, target_modules=["0"], init_lora_weights=False),
    )
    layer_of_peft = theirs.base_model.model[0]
    a, b = layer_of_peft.lora_A["default"].weight, layer_of_peft.lora_B["default"].weight
    ours = adapted(layer)
    delta = adapter(ours[0])
    with torch.no_grad():
        delta.down.copy_(a.reshape(delta.down.shape))
        delta.up.copy_(b.reshape(delta.up.shape))
    out, reference = ours(x), theirs(x)
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    reference.backward(upstream)
    for mine, other in ((delta.down, a), (delta.up, b)):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad.reshape(mine.shape), atol=1e-4, rtol=1e-4)
    if layer.weight.shape[2:] != (1, 1, 1):  # type: ignore[union-attr,index]
        # peft cannot merge these: it takes every kernel of one row and one column for a 2-D one.
        layer_of_peft.merge()
        merged = merge(ours)[0].weight  # type: ignore[index]
        torch.testing.assert_close(merged, layer_of_peft.base_layer.weight, atol=1e-6, rtol=1e-5)


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
