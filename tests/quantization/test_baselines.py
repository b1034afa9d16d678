from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyratok.quantization import vq
from pyratok.quantization.base import Quantized, Quantizer, linear, straight_through
from pyratok.quantization.baselines import QuantizerConfig, SignQuantizer, build_quantizer
from pyratok.quantization.vq import DualCodebook, GumbelQuantizer, VectorQuantizer, nearest

DIM = 8
CONFIGS = [
    QuantizerConfig(kind="vq", dim=DIM, bits=6),
    QuantizerConfig(kind="vq", dim=DIM, codebook_size=48),
    QuantizerConfig(kind="gvq", dim=DIM, bits=6),
    QuantizerConfig(kind="lfq", dim=DIM, bits=6),
    QuantizerConfig(kind="rvq", dim=DIM, bits=6, stages=2),
    QuantizerConfig(kind="rvq-lfq", dim=DIM, bits=6, stages=3),
    QuantizerConfig(kind="unitok", dim=DIM, bits=6, stages=2),
    QuantizerConfig(kind="tokenflow", dim=DIM, bits=6),
]
every_kind = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{c.words}x{c.stages}")
followers = pytest.mark.parametrize(
    "config",
    [c for c in CONFIGS if c.kind in ("vq", "rvq", "unitok", "tokenflow")],
    ids=lambda c: f"{c.kind}-{c.words}",
)


def built(config: QuantizerConfig, seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    return build_quantizer(config)


def clusters(seed: int = 0, spread: float = 0.1, offset: float = 3.0) -> Tensor:
    """Features ``[2, 8, 3, 4, 5]`` in twelve tight clusters, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(12, DIM, generator=torch.Generator().manual_seed(99)) + offset
    tokens = centers[torch.randint(12, (2, 3, 4, 5), generator=generator)]
    tokens = tokens + spread * torch.randn(tokens.shape, generator=generator)
    return tokens.movedim(-1, 1)


def train(quantizer: Quantizer, steps: int = 40, weight: float = 0.01) -> list[float]:
    """Errors of reconstruction, step by step."""
    quantizer.train()
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.03) if parameters else None
    errors = []
    for step in range(steps):
        z = clusters(seed=step)
        out = quantizer(z)
        error = (out.features - z).square().mean()
        loss = error + weight * torch.stack(list(out.losses.values())).sum()
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors.append(error.item())
    return errors


def used(out: Quantized) -> int:
    """Different words over all codebooks."""
    return sum(len(ids.unique()) for ids in out.ids)


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_features_are_what_the_ids_stand_for(config: QuantizerConfig, training: bool) -> None:
    quantizer = built(config).train(training)
    for seed in range(3):
        out = quantizer(clusters(seed))
        assert torch.equal(out.features, quantizer.lookup(out.ids))


@every_kind
def test_shapes_types_and_rate(config: QuantizerConfig) -> None:
    quantizer, z = built(config), clusters()
    out = quantizer(z)
    assert out.features.shape == z.shape
    assert out.features.dtype == torch.float32
    assert len(out.ids) == len(quantizer.codebook_sizes) == config.stages
    for ids, size in zip(out.ids, quantizer.codebook_sizes, strict=True):
        assert ids.shape == (2, 3, 4, 5)
        assert ids.dtype == torch.int64
        assert 0 <= int(ids.min()) <= int(ids.max()) < size
    assert out.bits_per_position == math.log2(math.prod(quantizer.codebook_sizes))
    if config.bits is not None:
        assert out.bits_per_position == config.bits
    assert all(loss.ndim == 0 and loss.dtype == torch.float32 for loss in out.losses.values())


@every_kind
def test_equal_tokens_have_equal_words_wherever_they_are(config: QuantizerConfig) -> None:
    quantizer, z = built(config).eval(), clusters()
    whole, flipped = quantizer(z), quantizer(z.flip(0, 2, 3, 4))
    for ids, other in zip(whole.ids, flipped.ids, strict=True):
        assert torch.equal(ids, other.flip(0, 1, 2, 3))


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_gradient_reaches_the_features_and_every_parameter(config: QuantizerConfig, training: bool) -> None:
    quantizer = built(config).train(training)
    z = clusters().requires_grad_()
    out = quantizer(z)
    (out.features * torch.randn_like(out.features)).sum().backward(retain_graph=True)
    assert z.grad is not None
    assert (z.grad != 0).any(dim=1).all()
    sum(out.losses.values()).backward()  # type: ignore[union-attr]
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["vq", "rvq", "unitok", "tokenflow"])
def test_gradient_passes_straight_through(kind: Any) -> None:
    quantizer = built(next(c for c in CONFIGS if c.kind == kind))
    z, upstream = clusters().requires_grad_(), torch.randn(2, DIM, 3, 4, 5)
    quantizer(z).features.backward(upstream)
    assert torch.equal(z.grad, upstream)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.kind != "gvq"], ids=lambda c: c.kind)
def test_commitment_alone_pulls_features_to_their_words(config: QuantizerConfig) -> None:
    quantizer = built(config)
    quantizer(clusters())
    quantizer.eval()
    z = clusters(1).requires_grad_()
    loss = quantizer(z).losses["commitment"]
    loss.backward()
    assert z.grad is not None
    nearer = z.detach() - 0.1 * z.grad / z.grad.abs().max()
    assert quantizer(nearer).losses["commitment"] < loss


@every_kind
def test_training_lowers_the_error(config: QuantizerConfig) -> None:
    errors = train(built(config))
    later = sum(errors[-5:]) / 5
    # Far from the origin every quantizer has to move; those that start on the first batch are good at once.
    untrained = (built(config).eval()(clusters()).features - clusters()).square().mean().item()
    assert later < 0.5 * untrained
    assert all(math.isfinite(error) for error in errors)


@followers
def test_restarting_dead_words_raises_usage(config: QuantizerConfig) -> None:
    plain, restarting = built(config), built(config)
    for module in plain.modules():
        if isinstance(module, VectorQuantizer):
            module.restart_below = 0.0
    for quantizer in (plain, restarting):
        train(quantizer)
    assert used(restarting.eval()(clusters(7))) > used(plain.eval()(clusters(7)))
    error, other = ((q(clusters(7)).features - clusters(7)).square().mean() for q in (restarting, plain))
    assert error < other


@every_kind
def test_evaluation_changes_nothing_and_draws_nothing(config: QuantizerConfig) -> None:
    quantizer = built(config)
    train(quantizer, steps=2)
    quantizer.eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    state = torch.get_rng_state()
    first, second = quantizer(clusters()), quantizer(clusters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.ids, second.ids, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@every_kind
def test_a_reloaded_quantizer_gives_the_same_ids(config: QuantizerConfig) -> None:
    quantizer, other = built(config), built(config, seed=1)
    train(quantizer, steps=3)
    other.load_state_dict(quantizer.state_dict())
    out, again = quantizer.eval()(clusters()), other.eval()(clusters())
    assert all(torch.equal(a, b) for a, b in zip(out.ids, again.ids, strict=True))
    assert torch.equal(out.features, other.lookup(out.ids))


@every_kind
def test_the_same_seed_trains_the_same(config: QuantizerConfig) -> None:
    assert train(built(config), steps=4) == train(built(config), steps=4)


@every_kind
def test_float32_also_under_autocast(config: QuantizerConfig) -> None:
    z = clusters().bfloat16()
    results = []
    for autocast, values in ((False, z.float()), (True, z.float()), (True, z)):
        quantizer = built(config)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results.append(quantizer(values))
            results.append(quantizer.eval()(values))
    for index, out in enumerate(results):
        reference = results[index % 2]
        assert all(torch.equal(a, b) for a, b in zip(out.ids, reference.ids, strict=True))
        assert torch.equal(out.features, reference.features)
        assert out.losses == reference.losses


@every_kind
def test_a_converted_model_still_quantizes_in_float32(config: QuantizerConfig) -> None:
    quantizer = built(config).eval().to(torch.bfloat16)
    out = quantizer(clusters().bfloat16())
    assert out.features.dtype == torch.float32
    assert torch.equal(out.features, quantizer.lookup(out.ids))


@every_kind
def test_wrong_input_is_refused(config: QuantizerConfig) -> None:
    quantizer = built(config)
    for shape in ((2, DIM + 1, 3, 4, 5), (2, DIM, 4, 5)):
        with pytest.raises(ValueError, match=r"expected features \[B, 8, t, h, w\], got shape"):
            quantizer(torch.zeros(shape))
    ids = quantizer(clusters()).ids
    with pytest.raises(ValueError, match=rf"has {len(ids)} codebooks, got ids of {len(ids) + 1}"):
        quantizer.lookup((*ids, ids[0]))
    for wrong in (-1, quantizer.codebook_sizes[-1]):
        with pytest.raises(ValueError, match=f"codebook {len(ids)} lie outside"):
            quantizer.lookup((*ids[:-1], torch.full_like(ids[0], wrong)))


class TestNearest:
    def test_is_the_word_with_the_least_distance(self) -> None:
        z, codebook = torch.randn(50, 6), torch.randn(30, 6)
        distances = torch.cdist(z.double(), codebook.double())
        assert torch.equal(nearest(z, codebook), distances.argmin(1))

    def test_words_stand_for_themselves(self) -> None:
        codebook = torch.randn(40, 6)
        assert torch.equal(nearest(codebook, codebook), torch.arange(40))

    @pytest.mark.parametrize("limit", [1, 100, 1 << 24])
    def test_pieces_change_nothing(self, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        z, codebook = torch.randn(37, 6), torch.randn(30, 6)
        whole = nearest(z, codebook)
        monkeypatch.setattr(vq, "MAX_SCORES", limit)
        assert torch.equal(nearest(z, codebook), whole)

    def test_a_large_vocabulary_is_never_held_against_all_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []
        real = torch.addmm

        def watched(*args: Tensor, **kwargs: Any) -> Tensor:
            out = real(*args, **kwargs)
            sizes.append(out.numel())
            return out

        monkeypatch.setattr(torch, "addmm", watched)
        nearest(torch.randn(600, 2), torch.randn(1 << 16, 2))
        assert len(sizes) == 3
        assert max(sizes) <= vq.MAX_SCORES


class TestMovingAverage:
    def test_words_move_to_the_mean_of_their_tokens(self) -> None:
        quantizer = VectorQuantizer(DIM, 4, decay=0.5)
        z = torch.randn(4, DIM) * 5
        tokens = z.repeat_interleave(6, 0) + 0.1 * torch.randn(24, DIM)
        for _ in range(60):
            quantizer.quantize(tokens)
        means = tokens.view(4, 6, DIM).mean(1)
        torch.testing.assert_close(quantizer.embed((quantizer.nearest(means),)), means, atol=1e-4, rtol=1e-4)

    def test_a_word_is_the_ratio_of_the_averages(self) -> None:
        quantizer = VectorQuantizer(2, 2, decay=0.9, restart_below=0.0)
        quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0]]))
        quantizer.sizes.copy_(torch.tensor([2.0, 3.0]))
        quantizer.quantize(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
        sizes = [0.9 * 2 + 0.1 * 3, 0.9 * 3]
        assert quantizer.sizes.tolist() == pytest.approx(sizes)
        expected = torch.tensor([[0.1 * 2 / sizes[0], 0.1 * 3 / sizes[0]], [10.0, 10.0]])
        torch.testing.assert_close(quantizer.codebook, expected)

    def test_unused_words_stay_where_they_are(self) -> None:
        quantizer = VectorQuantizer(DIM, 16, restart_below=0.0)
        before = quantizer.codebook.clone()
        _, (ids,), _ = quantizer.quantize(torch.randn(5, DIM))
        unused = torch.ones(16, dtype=torch.bool).index_fill(0, ids, False)
        assert torch.equal(quantizer.codebook[unused], before[unused])

    def test_the_first_batch_becomes_the_codebook(self) -> None:
        quantizer, tokens = VectorQuantizer(DIM, 10), torch.randn(10, DIM) * 50
        features, (ids,), _ = quantizer.quantize(tokens)
        assert ids.unique().numel() == 10
        torch.testing.assert_close(features, tokens)

    def test_a_batch_smaller_than_the_codebook_restarts_each_token_once(self) -> None:
        quantizer = VectorQuantizer(DIM, 50)
        for number in range(1, 4):
            quantizer.quantize(torch.randn(10, DIM))
            assert int((quantizer.sizes > 0).sum()) == 10 * number

    def test_words_in_use_are_not_restarted(self) -> None:
        quantizer = VectorQuantizer(DIM, 4, decay=0.99)
        tokens = torch.randn(4, DIM) * 10
        for _ in range(5):
            quantizer.quantize(tokens)
        torch.testing.assert_close(quantizer.embed((quantizer.nearest(tokens),)), tokens)

    def test_buffers_can_be_averaged(self) -> None:
        """The trainer's moving average of weights takes float buffers only."""
        assert {value.dtype for value in VectorQuantizer(DIM, 4).state_dict().values()} == {torch.float32}


class TestGumbel:
    def test_words_are_drawn_in_training_and_the_most_likely_one_is_taken_in_evaluation(self) -> None:
        quantizer, z = GumbelQuantizer(DIM, 8), clusters(offset=0.0)
        drawn = {tuple(quantizer(z).ids[0].flatten().tolist()) for _ in range(3)}
        assert len(drawn) == 3
        likely = linear(quantizer.logits, z.movedim(1, -1)).argmax(-1)
        assert torch.equal(quantizer.eval()(z).ids[0], likely)

    def test_draws_follow_the_softmax(self) -> None:
        quantizer = GumbelQuantizer(1, 3)
        with torch.no_grad():
            quantizer.logits.weight.zero_()
            quantizer.logits.bias.copy_(torch.tensor([0.1, 0.3, 0.6]).log())
        torch.manual_seed(0)
        ids = quantizer(torch.zeros(1, 1, 1, 100, 200)).ids[0]
        shares = torch.bincount(ids.flatten()) / ids.numel()
        torch.testing.assert_close(shares, torch.tensor([0.1, 0.3, 0.6]), atol=0.02, rtol=0)

    def test_a_lower_temperature_sharpens_the_relaxed_choice(self) -> None:
        quantizer, z = GumbelQuantizer(DIM, 8).eval(), clusters()
        gaps = []
        for quantizer.temperature in (1.0, 1 / 16, 1e-4):
            _, expected, _ = quantizer._choose(z.movedim(1, -1).reshape(-1, DIM))
            hard = quantizer(z).features.movedim(1, -1).reshape(-1, DIM)
            gaps.append(float((expected - hard).abs().mean().detach()))
        assert gaps[0] > gaps[1] > gaps[2]
        assert gaps[2] < 1e-3

    def test_gradient_is_that_of_the_straight_through_estimator(self) -> None:
        """Against torch's own: one-hot forwards, softmax backwards."""
        quantizer, upstream = GumbelQuantizer(DIM, 8, temperature=0.7), torch.randn(30, DIM)
        z = torch.randn(30, DIM, requires_grad=True)
        torch.manual_seed(3)
        features, _, _ = quantizer.quantize(z)
        inputs = (z, *quantizer.parameters())
        ours = torch.autograd.grad((features * upstream).sum(), inputs)
        torch.manual_seed(3)
        logits = quantizer.logits(z)
        hard = nn.functional.gumbel_softmax(logits, tau=0.7, hard=True)
        soft = (hard @ quantizer.codebook.weight * upstream).sum()
        for mine, other in zip(ours, torch.autograd.grad(soft, inputs), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)

    def test_divergence_from_the_uniform_distribution(self) -> None:
        quantizer, z = GumbelQuantizer(DIM, 8).eval(), clusters()
        with torch.no_grad():
            quantizer.logits.weight.zero_()
            quantizer.logits.bias.zero_()
            assert float(quantizer(z).losses["uniform_kl"]) == pytest.approx(0, abs=1e-6)
            quantizer.logits.bias[2] = 100.0
            assert float(quantizer(z).losses["uniform_kl"]) == pytest.approx(math.log(8))

    def test_pieces_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        quantizer, z = GumbelQuantizer(DIM, 8).eval(), clusters()
        whole = quantizer(z)
        monkeypatch.setattr(vq, "MAX_SCORES", 64)
        parts = quantizer(z)
        assert torch.equal(whole.ids[0], parts.ids[0])
        torch.testing.assert_close(whole.losses, parts.losses)


class TestSigns:
    def test_stages_refine_a_uniform_grid(self) -> None:
        """Stage i adds half of what stage i - 1 did: S stages are S bits of a uniform scalar quantizer."""
        quantizer = build_quantizer(QuantizerConfig(kind="rvq-lfq", dim=1, bits=4, stages=4))
        inner = quantizer.inner
        assert isinstance(inner, Quantizer)
        z = torch.linspace(-1.9, 1.9, 200)[:, None]
        features, _, _ = inner.quantize(z)
        assert features.unique().tolist() == [(2 * k - 15) / 8 for k in range(16)]
        assert (features - z).abs().max() <= 1 / 8

    def test_terms_are_those_of_the_values_in_units_of_the_scale(self) -> None:
        z = torch.randn(20, 5)
        whole, scaled = SignQuantizer(5), SignQuantizer(5, scale=0.25)
        features, ids, losses = whole.quantize(z)
        quarter, same, terms = scaled.quantize(z / 4)
        assert torch.equal(quarter, features / 4)
        assert torch.equal(ids[0], same[0])
        torch.testing.assert_close(terms, losses)

    def test_even_use_of_the_words_is_rewarded(self) -> None:
        even = torch.tensor([[9.0, 9.0], [9.0, -9.0], [-9.0, 9.0], [-9.0, -9.0]])
        losses = SignQuantizer(2).quantize(even)[2]
        assert losses["batch_entropy"].item() == pytest.approx(-2 * math.log(2))
        assert losses["sample_entropy"].item() == pytest.approx(0, abs=1e-5)
        assert SignQuantizer(2).quantize(even[:1])[2]["batch_entropy"] > -0.01


class TestDualCodebook:
    def test_the_weight_decides_who_chooses(self) -> None:
        quantizer = DualCodebook(4, 2, semantic_dim=2).eval()
        quantizer.codebook.copy_(torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
        token = torch.tensor([[0.9, 0.9, 0.2, 0.2]])  # semantically word 1, in its pixels word 0
        for quantizer.pixel_weight, word in ((0.1, 1), (10.0, 0)):
            assert quantizer.nearest(token).item() == word

    def test_wide_parts_count_no_more_than_narrow_ones(self) -> None:
        quantizer = DualCodebook(7, 2, semantic_dim=1).eval()
        quantizer.codebook.copy_(torch.stack([torch.zeros(7), torch.ones(7)]))
        token = torch.tensor([[1.0] + [0.2] * 6])
        assert quantizer.nearest(token).item() == 1


def test_straight_through_is_exact() -> None:
    z, words = torch.randn(100, requires_grad=True), torch.randn(100) * 1e-3
    assert torch.equal(straight_through(z * 1e6, words), words)


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"kind": "pq", "bits": 8}, "unknown quantizer 'pq'; there are vq, gvq"),
            ({"kind": "vq"}, "the rate is missing"),
            ({"kind": "vq", "bits": 8, "stages": 2}, "vq has a single stage"),
            ({"kind": "rvq", "bits": 8, "stages": 3}, "a positive multiple of stages = 3, got 8"),
            ({"kind": "rvq", "bits": 8, "stages": 0}, "stages >= 1"),
            ({"kind": "rvq", "bits": 8, "stages": 2, "codebook_size": 32}, "2 stages of 32 words are not 8 bits"),
            ({"kind": "vq", "bits": 24}, "2 to 1048576 words, got 16777216; use more stages"),
            ({"kind": "vq", "codebook_size": 1}, "2 to 1048576 words, got 1"),
            ({"kind": "lfq", "codebook_size": 48}, "a power of two, per stage, got 48"),
            ({"kind": "lfq", "bits": 32}, "a power of two, per stage, got 4294967296"),
            ({"kind": "lfq", "bits": 0}, "positive multiple"),
            ({"kind": "unitok", "bits": 9, "stages": 3}, "dim 8 cannot be split into 3 equal chunks"),
            ({"kind": "tokenflow", "bits": 8, "dim": 1}, "dim >= 2, got 1 and 1"),
        ],
        ids=str,
    )
    def test_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            QuantizerConfig(**({"dim": DIM} | fields))

    def test_bits_and_codebook_size_say_the_same(self) -> None:
        for kind in ("rvq", "rvq-lfq", "unitok"):
            sizes = [
                build_quantizer(QuantizerConfig(kind=kind, dim=DIM, stages=2, **rate)).codebook_sizes  # type: ignore[arg-type]
                for rate in ({"bits": 8}, {"codebook_size": 16}, {"bits": 8, "codebook_size": 16})
            ]
            assert sizes == [(16, 16)] * 3

    def test_the_vocabulary_of_the_paper(self) -> None:
        quantizer = build_quantizer(QuantizerConfig(kind="lfq", dim=DIM, bits=16))
        assert quantizer.codebook_sizes == (65536,)
        out = quantizer(clusters())
        assert torch.equal(out.features, quantizer.lookup(out.ids))
