from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyratok.train.optim import Muon, OptimConfig, build_optimizers, orthogonalize
from tiny import tiny_pyratok


class TestOrthogonalize:
    @settings(deadline=None, max_examples=30)
    @given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e6]))
    def test_singular_values_near_one_and_vectors_kept(self, rows: int, columns: int, seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(rows, columns, generator=generator)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        # Directions that are not there (a square random matrix may lack some) cannot be brought back.
        s = s.clamp_min(float(s.max()) / 50)
        out = orthogonalize((u * s) @ v * scale)
        values = torch.linalg.svdvals(out)
        assert float(values.max()) < 1.3
        assert float(values.min()) > 0.5
        coordinates = u.T @ out @ v.T
        assert float((coordinates - coordinates.diagonal().diag()).abs().max()) < 1e-2

    def test_rank_is_kept(self) -> None:
        out = orthogonalize(torch.outer(torch.randn(6), torch.randn(9)))
        values = torch.linalg.svdvals(out)
        assert 0.5 < float(values[0]) < 1.3
        assert float(values[1]) < 1e-3

    def test_nothing_becomes_nothing(self) -> None:
        assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


class TestMuon:
    @pytest.mark.parametrize("shape", [(8, 8), (8, 4, 3, 3, 3), (24, 2)])
    def test_update_has_the_size_of_adamw_s(self, shape: tuple[int, ...]) -> None:
        weight = nn.Parameter(torch.randn(shape))
        before = weight.detach().clone()
        weight.grad = torch.randn(shape) * 1e-4
        Muon([weight], lr=0.1, weight_decay=0.0).step()
        rms = float((weight.detach() - before).square().mean().sqrt())
        assert rms == pytest.approx(0.1 * 0.2, rel=0.3)

    def test_descends(self) -> None:
        weight, target = nn.Parameter(torch.randn(6, 10)), torch.randn(6, 10)
        optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
        losses = []
        for _ in range(150):
            loss = (weight - target).square().mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < 0.1 * losses[0]

    def test_weights_without_gradient_stay(self) -> None:
        weight = nn.Parameter(torch.ones(3, 3))
        Muon([weight], lr=0.1).step()
        assert torch.equal(weight, torch.ones(3, 3))


def test_every_trainable_weight_has_one_optimiser() -> None:
    model = tiny_pyratok()
    model.vae.encoder.requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    adamw, muon = build_optimizers(model.named_parameters(), OptimConfig(weight_decay=0.1))
    assert isinstance(muon, Muon)
    held = [p for optimizer in (adamw, muon) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert {names[p] for p in held} == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(group["weight_decay"] == 0 for group in adamw.param_groups)
    assert all(p.ndim >= 2 and p.shape[0] > 1 for group in muon.param_groups for p in group["params"])
    assert any(names[p].endswith("gamma") for group in adamw.param_groups for p in group["params"])


def test_adamw_decays_matrices_only() -> None:
    (optimizer,) = build_optimizers(tiny_pyratok().named_parameters(), OptimConfig(name="adamw", weight_decay=0.1))
    by_decay = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(by_decay) == {0.0, 0.1}
    assert all(p.ndim >= 2 for p in by_decay[0.1])


class TestSchedule:
    CONFIG = OptimConfig(lr=1e-3, warmup=10, decay_share=0.3, final_lr_ratio=0.02)

    def test_rises_stays_and_falls(self) -> None:
        rates = [self.CONFIG.lr_at(step, 100) for step in range(100)]
        assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
        assert rates[10:70] == pytest.approx([1e-3] * 60)
        assert all(later < earlier for earlier, later in pairwise(rates[69:]))
        assert rates[-1] == pytest.approx(2e-5)
        assert rates[84] == pytest.approx((1e-3 + 2e-5) / 2)

    def test_the_rate_before_the_decay_does_not_depend_on_the_length(self) -> None:
        assert all(self.CONFIG.lr_at(step, 100) == self.CONFIG.lr_at(step, 1000) for step in range(70))

    def test_without_decay_it_stays_to_the_end(self) -> None:
        config = OptimConfig(lr=1e-3, warmup=0, decay_share=0.0)
        assert [config.lr_at(step, 5) for step in range(5)] == pytest.approx([1e-3] * 5)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", "sgd"),
            ("lr", 0.0),
            ("lr", math.nan),
            ("lr", math.inf),
            ("weight_decay", -0.1),
            ("betas", (2.0, 2.0)),
            ("betas", (0.9, math.nan)),
            ("warmup", -1),
            ("decay_share", 1.5),
            ("final_lr_ratio", math.nan),
            ("grad_clip", 0.0),
            ("ema_decay", 1.0),
        ],
    )
    def test_settings_are_checked(self, field: str, value: Any) -> None:
        with pytest.raises(ValueError, match=rf"^{field} must be .*, got '?{re.escape(str(value))}'?$"):
            OptimConfig(**{field: value})
