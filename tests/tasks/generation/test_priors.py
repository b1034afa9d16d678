"""Likelihoods: who sees what, that sampling and teacher forcing agree, and that priors learn."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pyratok.model.alignment import WordHead
from pyratok.quantization.bits import ids_to_signs
from pyratok.tasks.generation.autoregressive import ARPrior
from pyratok.tasks.generation.backbone import KVCache
from pyratok.tasks.generation.generate import build_prior, generate
from pyratok.tasks.generation.masked import MaskedPrior
from pyratok.tasks.generation.prior import Prior
from pyratok.tasks.generation.sampling import Noise, Sampler, SamplingConfig
from pyratok.tasks.generation.stepwise import Stepwise
from pyratok.types import ModelId, TextEmbedding
from tiny_priors import CONFIG, GEOMETRY, KINDS, TOKENIZER, random_text, random_tokens, tiny_prior

STEPS = {
    "ar": 100,
    "ar by time": 100,
    "ar by cell": 100,
    "masked": 100,
    "scale": 250,
    "llm": 100,
    "llm by time": 100,
    "llm by cell": 100,
}
"""A step of scale teaches one level of three."""


def sampler(prior: Prior, batch: int = 2, **config: object) -> Sampler:
    level = prior.layout(GEOMETRY).level
    noise = Noise(0, batch, torch.device("cpu"))
    return Sampler(prior.head, level, 3, SamplingConfig(**config), noise, guided=False)  # type: ignore[arg-type]


def shown(prior: MaskedPrior) -> dict[str, torch.Tensor]:
    """Choices under which every other word of the last group is hidden."""
    choices = prior.draw(2, GEOMETRY, measure=True)
    groups = prior._groups(prior.layout(GEOMETRY))
    hidden = torch.zeros_like(choices["hidden"])
    hidden[:, groups[-1].start :: 2] = True
    return choices | {"hidden": hidden, "group": torch.tensor(len(groups) - 1)}


@pytest.mark.parametrize("kind", ["ar", "ar by time", "ar by cell", "llm", "llm by time", "llm by cell"])
@torch.no_grad()
def test_sampling_by_cache_has_the_likelihood_of_teacher_forcing(kind: str) -> None:
    prior, text = tiny_prior(kind), random_text()
    assert isinstance(prior, ARPrior)
    layout, memory = prior.layout(GEOMETRY), prior.remember(text, 2)
    known = torch.zeros(2, len(layout), dtype=torch.bool)
    known[:, 3:7] = known[:, -2:] = known[0, 10] = True
    start = layout.flatten(random_tokens().levels).long()
    words, gained = prior.sample(start, known, layout, memory, sampler(prior), lambda words, places: None)
    assert torch.equal(words[known], start[known])
    tokens = replace(random_tokens(), levels=tuple(ids.int() for ids in layout.unflatten(words)))
    taught = prior(tokens, text, prior.draw(2, GEOMETRY, measure=True)).token_nll
    torch.testing.assert_close(-gained[~known], taught[~known], atol=1e-4, rtol=0)
    assert not gained[known].any()


@pytest.mark.parametrize("kind", ["ar by time", "ar by cell"])
@pytest.mark.parametrize("counts", [[1] * 9, [4, 1, 1, 2, 1], [1, 3, 1, 4]])
@torch.no_grad()
def test_place_after_place_is_the_whole_pass(kind: str, counts: list[int]) -> None:
    prior, text, tokens = tiny_prior(kind), random_text(), random_tokens()
    assert isinstance(prior, ARPrior)
    for weight in prior.parameters():  # norms too, which begin as ones
        weight.add_(0.2 * torch.randn_like(weight))
    words, layout = prior.words_of(tokens)
    memory, places, cache = prior.remember(text, 2), prior.places(layout), KVCache(9)
    assert not memory.mask.all()
    whole = prior.read(words, places, 0, 9, memory)
    stepwise, parts = Stepwise(prior.backbone, memory, cache), []
    for count in counts:
        parts.append(prior.read(words, places, cache.length, cache.length + count, memory, cache, stepwise))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_scale_by_cache_sees_what_it_sees_in_training() -> None:
    prior, text, tokens = tiny_prior("scale"), random_text(), random_tokens()
    assert isinstance(prior, MaskedPrior)
    words, layout = prior.words_of(tokens)
    known = layout.level.expand(2, -1) < 2
    memory, choices = prior.remember(text, 2), shown(prior)
    # In one step all of the last level is drawn at once, from nothing but the levels before.
    drawn, gained = prior.sample(words, known, layout, memory, sampler(prior, steps=1), lambda *_: None)
    choices["hidden"] = ~known
    tokens = replace(tokens, levels=tuple(ids.int() for ids in layout.unflatten(drawn)))
    taught = prior(tokens, text, choices).token_nll
    torch.testing.assert_close(-gained[~known], taught.flatten(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["ar", "ar by time", "ar by cell", "llm", "llm by time", "llm by cell"])
@torch.no_grad()
def test_words_do_not_see_later_ones(kind: str) -> None:
    prior, tokens = tiny_prior(kind), random_tokens(1)
    words, layout = prior.words_of(tokens)
    before = prior(tokens, None, prior.draw(1, GEOMETRY, measure=True)).token_nll
    for place in (0, 7, len(layout) - 1):
        changed = words.clone()
        changed[:, place] ^= 5
        levels = tuple(ids.int() for ids in layout.unflatten(changed))
        after = prior(replace(tokens, levels=levels), None, prior.draw(1, GEOMETRY, measure=True)).token_nll
        torch.testing.assert_close(after[:, :place], before[:, :place], atol=1e-6, rtol=1e-6)
        assert ((after - before)[:, place:].abs() > 1e-4).float().mean() > 0.8


@torch.no_grad()
def test_scale_does_not_see_later_levels_nor_hidden_words() -> None:
    prior, tokens = tiny_prior("scale"), random_tokens()
    assert isinstance(prior, MaskedPrior)
    words, layout = prior.words_of(tokens)
    hidden, places, memory = shown(prior)["hidden"], prior.places(layout), prior.remember(None, 2)
    before = prior.read(words, hidden, places, 0, len(layout), memory)
    changed = torch.where(layout.level == 2, words ^ 5, words)
    after = prior.read(changed, hidden, places, 0, len(layout), memory)
    last = layout.level == 2
    torch.testing.assert_close(after[:, ~last], before[:, ~last], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(after[:, last], before[:, last], atol=1e-3)
    unseen = prior.read(torch.where(hidden, words ^ 5, words), hidden, places, 0, len(layout), memory)
    torch.testing.assert_close(unseen, before)


@torch.no_grad()
def test_masked_sees_everything_that_is_shown() -> None:
    prior, tokens = tiny_prior("masked"), random_tokens(1)
    assert isinstance(prior, MaskedPrior)
    words, layout = prior.words_of(tokens)
    hidden = torch.zeros_like(words, dtype=torch.bool)
    hidden[:, 0] = True
    read = (prior.places(layout), 0, len(layout), prior.remember(None, 1))
    before = prior.read(words, hidden, *read)
    last = words.clone()
    last[:, -1] ^= 5
    assert not torch.allclose(prior.read(last, hidden, *read)[:, 0], before[:, 0], atol=1e-4)
    first = words.clone()
    first[:, 0] ^= 5
    torch.testing.assert_close(prior.read(first, hidden, *read), before)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_captions_matter_and_their_padding_does_not(kind: str) -> None:
    prior, tokens, text = tiny_prior(kind), random_tokens(), random_text()
    choices = prior.draw(2, GEOMETRY, torch.Generator().manual_seed(3), measure=True)

    def nll(said: TextEmbedding | None, **other: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = prior(tokens, said, choices | other).token_nll
        return found

    told = nll(text)
    noisy = replace(text, tokens=torch.where(text.mask[..., None], text.tokens, 7.0))
    torch.testing.assert_close(nll(noisy), told)
    assert ((nll(random_text(seed=1)) - told).abs().amax(1) > 1e-3).all()
    untold = nll(None)
    assert ((untold - told).abs().amax(1) > 1e-3).all()
    torch.testing.assert_close(nll(text, dropped=torch.tensor([True, True])), untold)
    torch.testing.assert_close(nll(replace(text, mask=torch.zeros_like(text.mask))), untold)


def test_hidden_shares_follow_the_schedule() -> None:
    prior = tiny_prior("masked")
    generator = torch.Generator().manual_seed(0)
    size = len(prior.layout(GEOMETRY))
    shares = prior.draw(4000, GEOMETRY, generator)["hidden"].float().mean(1)
    assert shares.min() > 0
    assert float(shares.mean()) == pytest.approx(2 / math.pi + 0.5 / size, abs=0.02)
    counts = prior.draw(4000, GEOMETRY, generator, measure=True)["hidden"].sum(1)
    assert counts.bincount(minlength=size + 1)[1:].min() > 0
    assert float(counts.float().mean()) == pytest.approx((size + 1) / 2, rel=0.05)
    dropped = torch.cat([prior.draw(500, GEOMETRY, generator)["dropped"] for _ in range(4)])
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_and_a_few_steps_beat_unigram_entropy(kind: str) -> None:
    prior = build_prior(replace(CONFIG, **KINDS[kind], hidden_size=32)).train()
    tokens, text = random_tokens(), random_text()
    # Clips agree in most words: which word it is depends on the place, and in the first level on the caption.
    levels = [ids[:1].expand_as(ids).clone() for ids in tokens.levels]
    levels[0] = tokens.levels[0]
    tokens = replace(tokens, levels=tuple(levels))
    words, _ = prior.words_of(tokens)
    shares = words.flatten().bincount() / words.numel()
    entropy = float(-(shares[shares > 0] * shares[shares > 0].log()).sum())
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(STEPS[kind]):
        optimizer.zero_grad()
        prior(tokens, text).total.backward()
        optimizer.step()
    left = [name for name, weight in prior.named_parameters() if weight.grad is None]
    assert not left
    losses = [prior(tokens, text, prior.draw(2, GEOMETRY, measure=True)).total.item() for _ in range(12)]
    assert sum(losses) / 12 < 0.8 * entropy


def test_output_is_counted_per_clip_and_level() -> None:
    prior, tokens = tiny_prior("masked"), random_tokens()
    output = prior(tokens, None, prior.draw(2, GEOMETRY))
    nll, predicted = output.token_nll, output.predicted
    wanted = [nll[b][predicted[b]].mean() for b in range(2)]
    torch.testing.assert_close(output.total, torch.stack(wanted).mean())
    level = output.bits_per_token[2]
    torch.testing.assert_close(level, nll[predicted & (output.level == 2)].mean() / math.log(2))


def test_a_head_draws_by_its_likelihoods() -> None:
    """Counted over many draws, with and without the tail cut off."""
    torch.manual_seed(0)
    head, hidden = WordHead(8, 4, 2, True).requires_grad_(False), torch.randn(1, 1, 8).expand(1, 4000, 8) * 2
    level = torch.zeros(4000, dtype=torch.int64)

    def shares(**config: object) -> torch.Tensor:
        noise = Noise(1, 1, torch.device("cpu"))
        draw = Sampler(head, level, 1, SamplingConfig(**config), noise, guided=False)  # type: ignore[arg-type]
        words, gained = draw(hidden, slice(0, 4000))
        found = words[0].bincount(minlength=16) / 4000
        likely = torch.zeros(16).index_put_((words[0],), gained[0].exp())
        assert float((found - likely).abs().max()) < 0.03
        return found

    plain = shares()
    assert torch.equal(shares(top_k=4, top_p=1.0), plain)
    assert (shares(top_k=1) > 0).sum() == (shares(temperature=0.0) > 0).sum() == 1
    assert int(shares(top_k=1).argmax()) == int(shares(top_p=1e-6).argmax())
    assert (shares(top_k=2) > 0).sum() <= 4
    assert shares(temperature=0.5).max() > plain.max() > shares(temperature=3.0).max()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": -1.0}, "temperature is out of range"),
        ({"top_p": 0.0}, "top_p is out of range"),
        ({"top_p": [1.0, 0.5]}, "one for each of 3 levels"),
        ({"guidance": float("nan")}, "guidance"),
    ],
)
def test_settings_out_of_range(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(tiny_prior("ar"), **config)


def test_foreign_tokens_and_captions() -> None:
    prior, tokens = tiny_prior("ar"), random_tokens()
    with pytest.raises(ValueError, match=r"tokens of tiny .*, not of other"):
        prior(replace(tokens, model=ModelId(name="other", fingerprint="f" * 16)))
    with pytest.raises(ValueError, match="wants 3 levels of 6 bits, got 2"):
        prior(tokens.prefix(2))
    with pytest.raises(ValueError, match="captions should be"):
        prior(tokens, random_text(3))
    prior(replace(tokens, model=replace(TOKENIZER, name="renamed")))


@torch.no_grad()
def test_words_of_bits_that_do_not_divide_into_chunks_are_all_there_is() -> None:
    """Chunks of 4 and 1 bits: the second could have values that no word has."""
    head = WordHead(6, 5, 4, chained=True)
    for weight in head.parameters():
        torch.nn.init.normal_(weight)
    every = ids_to_signs(torch.arange(32), 5, dim=-1)[None]
    nll = head(torch.randn(6).expand(1, 32, 6), every, every)
    torch.testing.assert_close(nll.double().neg().exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    assert nll.max() < 100


@pytest.mark.parametrize("kind", ["ar", "scale", "masked"])
@pytest.mark.parametrize("settings", [{"guidance": 3.0}, {"top_k": 3}, {"temperature": 4.0}])
@torch.no_grad()
def test_no_word_is_drawn_that_the_tokenizer_has_not(kind: str, settings: dict[str, float]) -> None:
    prior = tiny_prior(kind, num_bits=5, chunk_bits=4)
    tokens = generate(prior, random_text(), GEOMETRY, seed=1, **settings)
    assert max(int(ids.max()) for ids in tokens.levels) < 32
    again = prior(tokens, random_text(), prior.draw(2, GEOMETRY, measure=True))
    assert again.token_nll.isfinite().all()
