"""Questions answered from tokens: by a small language model over tokens, a large one in small, and by likeness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyratok.config import TextHeadConfig
from pyratok.data.questions import statement
from pyratok.model.alignment import TokenLM, TokenLMConfig
from pyratok.model.answerer import Answerer, AnswererConfig, save_answerer
from pyratok.model.base import VideoTokenizer
from pyratok.model.pretrained import ModelLoadError
from pyratok.model.projector import ProjectorConfig, TokenProjector, fitting_grid, load_projector, save_projector
from pyratok.model.pyratok import PyraTok
from pyratok.model.token_lm_files import save_token_lm
from pyratok.tasks.qa import AnswererReader, LanguageModelReader, Reader, SimilarityReader, TokenLMReader, Writer, ask
from pyratok.types import ModelId, TextEmbedding, TokenPyramid
from tiny import CONFIG, LAPQ, StubText, random_video, tiny_pyratok

pytest.importorskip("transformers")

QUESTION = "Where is the dog?"
OPTIONS = ["on the left", "on the right", "at the top", "in the centre"]
LM = TokenLMConfig(num_levels=4, text_dim=LAPQ.text_dim, hidden_size=16, num_layers=1, num_heads=2)
WIDTH = 8
SIGNS = [
    torch.randn(2, 16, *grid, generator=torch.Generator().manual_seed(0)).sign() for grid in ((5, 2, 2), (3, 4, 4))
]


@pytest.fixture(scope="module")
def model() -> PyraTok:
    model = tiny_pyratok(config=replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=1, kernel=3)))
    model.text_encoder = StubText()
    return model


@pytest.fixture(scope="module")
def tokens(model: PyraTok) -> TokenPyramid:
    return model.encode(random_video())


@pytest.fixture
def lm() -> TokenLM:
    return TokenLM(LM).eval()


class Planted:
    """A reader that likes one option best, and remembers what it was asked."""

    def __init__(self, best: str) -> None:
        self.best = best
        self.asked: tuple[str, list[str]] | None = None

    def scores(self, model: VideoTokenizer, tokens: TokenPyramid, question: str, options: Sequence[str]) -> Tensor:
        self.asked = question, list(options)
        return torch.tensor([float(option == self.best) for option in options])


class Talker(Planted):
    def write(self, model: VideoTokenizer, tokens: TokenPyramid, question: str) -> str:
        return f"you ask {question}"


class EchoLM:
    """Stands in for a transformers model: the mean of the vectors says how likely an answer is."""

    name, width = "models/Echo-1B", WIDTH

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dtype, self.scale = torch.float32, nn.Parameter(torch.ones(()))

        def forward(self, inputs_embeds: Tensor, use_cache: bool) -> Any:
            return type("Output", (), {"last_hidden_state": self.scale * inputs_embeds.cumsum(1)})

    backbone = Backbone()

    def log_likelihoods(self, vectors: Tensor, question: str, answers: Sequence[str]) -> Tensor:
        return torch.tensor([float(vectors.mean()) * len(answer) for answer in answers])

    def write(self, vectors: Tensor, question: str, max_new_tokens: int) -> str:
        return f"{len(vectors)} vectors"


def projector(num_levels: int = 4, **changes: Any) -> TokenProjector:
    values = {"num_levels": num_levels, "width": WIDTH, "language_model": "Echo-1B", "hidden_size": 16} | changes
    return TokenProjector(ProjectorConfig(**values)).eval()


def answerer() -> Answerer:
    config = replace(CONFIG, text_head=TextHeadConfig(width=16, num_blocks=1, kernel=3))
    return Answerer(AnswererConfig.reading(config, width=16, narrow=4, num_layers=1, num_heads=2)).eval()


class TestAsk:
    def test_the_best_option_is_the_answer(self, model: PyraTok, tokens: TokenPyramid) -> None:
        reader = Planted("at the top")
        found = ask(model, tokens, f" {QUESTION} ", [f" {option}" for option in OPTIONS], reader=reader)
        assert (found.text, found.option) == ("at the top", 2)
        assert found.scores is not None
        assert found.scores.tolist() == [0, 0, 1, 0]
        assert reader.asked == (QUESTION, OPTIONS)

    def test_without_options_the_reader_writes(self, model: PyraTok, tokens: TokenPyramid) -> None:
        found = ask(model, tokens, QUESTION, reader=Talker(""))
        assert (found.text, found.option, found.scores) == (f"you ask {QUESTION}", None, None)
        with pytest.raises(ValueError, match="Planted only chooses: give options"):
            ask(model, tokens, QUESTION, reader=Planted(""))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["left", "right", "Left "], "option 1 and option 3 are the same"),
            (["left", " "], "option 2 has no letters"),
            (["left"], "no choice with 1 option"),
            ([], "at least one option"),
            ("left", r"a single one is \['left'\]"),
        ],
    )
    def test_bad_options_are_refused(
        self, model: PyraTok, tokens: TokenPyramid, options: Sequence[str], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            ask(model, tokens, QUESTION, options, reader=Planted("left"))

    @pytest.mark.parametrize("question", ["", "  ", "?"])
    def test_an_empty_question_is_refused(self, model: PyraTok, tokens: TokenPyramid, question: str) -> None:
        with pytest.raises(ValueError, match="has no letters"):
            ask(model, tokens, question, OPTIONS, reader=Planted(""))

    def test_several_clips_and_foreign_tokens_are_refused(self, model: PyraTok, tokens: TokenPyramid) -> None:
        with pytest.raises(ValueError, match=r"got 2; take one by tokens\.select"):
            ask(model, model.encode(random_video(2)), QUESTION, OPTIONS, reader=Planted(""))
        with pytest.raises(ValueError, match="were made by"):
            ask(tiny_pyratok(seed=1), tokens, QUESTION, OPTIONS, reader=Planted(""))


@pytest.mark.parametrize("kind", ["answerer", "tokens", "language", "similarity"])
class TestEveryReader:
    @pytest.fixture
    def reader(self, kind: str, lm: TokenLM) -> Reader:
        readers: dict[str, Reader] = {
            "answerer": AnswererReader(answerer()),
            "tokens": TokenLMReader(lm),
            "language": LanguageModelReader(EchoLM(), projector()),  # type: ignore[arg-type]
            "similarity": SimilarityReader(levels=range(4)),
        }
        return readers[kind]

    def test_an_option_scores_the_same_wherever_it_stands(
        self, reader: Reader, model: PyraTok, tokens: TokenPyramid
    ) -> None:
        found = reader.scores(model, tokens, QUESTION, OPTIONS)
        assert found.shape == (4,)
        assert found.dtype == torch.float32
        assert len(set(found.tolist())) > 1
        torch.testing.assert_close(found.flip(0), reader.scores(model, tokens, QUESTION, OPTIONS[::-1]))
        torch.testing.assert_close(found[:2], reader.scores(model, tokens, QUESTION, OPTIONS[:2]))

    def test_missing_levels_are_refused_with_the_fix(
        self, reader: Reader, model: PyraTok, tokens: TokenPyramid
    ) -> None:
        with pytest.raises(
            ValueError, match=r"needs 4 levels, these tokens hold 2; load the \.pyra with all its levels"
        ):
            ask(model, tokens.prefix(2), QUESTION, OPTIONS, reader=reader)


class TestAnswererReader:
    def test_statements_are_weighed_together_as_alone(self, model: PyraTok, tokens: TokenPyramid) -> None:
        reader = AnswererReader(answerer())
        features = model.lapq.pyramid(model.signs_of(tokens))[-1]
        found = reader.scores(model, tokens, QUESTION, OPTIONS)
        for option, score in zip(OPTIONS, found, strict=True):
            text = model.embed_captions(statement(QUESTION, option), 1)
            assert text is not None
            logit = reader.answerer(features, text.tokens[None], text.mask[None])
            torch.testing.assert_close(logit[0, 0], score)

    def test_clips_of_other_sizes_and_later_parts_are_read(self, model: PyraTok) -> None:
        reader = AnswererReader(answerer())
        for tokens in (
            model.encode(random_video(frames=17, height=48, width=80)),
            model.encode(random_video(frames=1)),
        ):
            assert ask(model, tokens, QUESTION, OPTIONS, reader=reader).text in OPTIONS
        later = model.encode(random_video(frames=17)).time_slice(1, 3)
        assert ask(model, later, QUESTION, OPTIONS, reader=reader).text in OPTIONS

    def test_from_disk_it_is_bound_to_its_tokenizer(self, model: PyraTok, tokens: TokenPyramid, tmp_path: Path) -> None:
        kept = answerer()
        save_answerer(kept, tmp_path / "a", model.model_id)
        again = AnswererReader.load(tmp_path / "a", model.model_id)
        found, wanted = (r.scores(model, tokens, QUESTION, OPTIONS) for r in (again, AnswererReader(kept)))
        assert torch.equal(found, wanted)
        with pytest.raises(ModelLoadError, match="not of other"):
            AnswererReader.load(tmp_path / "a", ModelId(name="other", fingerprint="f" * 16))


class TestTokenLMReader:
    def test_scores_are_log_likelihoods_of_statements_against_none(
        self, model: PyraTok, tokens: TokenPyramid, lm: TokenLM
    ) -> None:
        signs = model.signs_of(tokens)

        def log_likelihood(text: TextEmbedding | None) -> Tensor:
            return -sum((nll.sum() for nll in lm(signs, text).token_nll), torch.zeros(()))

        found = TokenLMReader(lm).scores(model, tokens, QUESTION, OPTIONS)
        for option, score in zip(OPTIONS, found, strict=True):
            caption = model.embed_captions(statement(QUESTION, option), 1)
            torch.testing.assert_close(score, log_likelihood(caption) - log_likelihood(None), atol=1e-3, rtol=1e-4)

    def test_a_model_that_cannot_hear_finds_all_alike(self, model: PyraTok, tokens: TokenPyramid, lm: TokenLM) -> None:
        for parameter in lm.caption.parameters():
            parameter.data.zero_()
        options = ["red", "tan"]  # as many letters: a longer caption moves what follows, heard or not
        found = TokenLMReader(lm).scores(model, tokens, QUESTION, options)
        torch.testing.assert_close(found[0], found[1])

    @pytest.mark.parametrize("windows", [1, 3])
    def test_the_same_windows_are_read_for_all(self, model: PyraTok, tokens: TokenPyramid, windows: int) -> None:
        small = TokenLM(replace(LM, max_tokens_per_level=5)).eval()
        seen: list[float] = []
        small.register_forward_pre_hook(lambda *call: seen.append(call[2]["window"]), with_kwargs=True)
        reader = TokenLMReader(small, windows)
        found = reader.scores(model, tokens, QUESTION, OPTIONS)
        assert seen == ([0.5] if windows == 1 else [0.0, 0.5, 1.0]) * 5
        assert torch.equal(found, reader.scores(model, tokens, QUESTION, OPTIONS))

    def test_from_disk_it_is_bound_to_its_tokenizer(self, model: PyraTok, lm: TokenLM, tmp_path: Path) -> None:
        save_token_lm(lm, tmp_path / "lm", model.model_id)
        assert TokenLMReader.load(tmp_path / "lm", model.model_id).lm.config == LM
        with pytest.raises(ModelLoadError, match="not of other"):
            TokenLMReader.load(tmp_path / "lm", ModelId(name="other", fingerprint="f" * 16))
        with pytest.raises(ValueError, match="one window"):
            TokenLMReader(lm, windows=0)


class TestLanguageModelReader:
    def test_it_chooses_and_writes(self, model: PyraTok, tokens: TokenPyramid) -> None:
        reader = LanguageModelReader(EchoLM(), projector(max_tokens_per_level=4))  # type: ignore[arg-type]
        assert isinstance(reader, Writer)
        assert ask(model, tokens, QUESTION, OPTIONS, reader=reader).text in OPTIONS
        grids = [fitting_grid(ids.shape[1:], 4) for ids in tokens.levels]
        count = sum(1 + t * h * w for t, h, w in grids)
        assert ask(model, tokens, QUESTION, reader=reader).text == f"{count} vectors"

    @pytest.mark.parametrize("changes", [{"language_model": "Other-1B"}, {"width": 16}])
    def test_another_language_model_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"trained for .* got models/Echo-1B of width 8"):
            LanguageModelReader(EchoLM(), projector(**changes))  # type: ignore[arg-type]


class TestSimilarityReader:
    def test_what_tokens_say_wins(self, model: PyraTok, tokens: TokenPyramid, monkeypatch: pytest.MonkeyPatch) -> None:
        """The clip's tokens lie on the statement of one option: that one is chosen, with a score of 1."""
        for index, option in enumerate(OPTIONS):
            vector = model.embed_text([statement(QUESTION, option)])[0]

            def say(tokens: TokenPyramid, level: int = -1, vector: Tensor = vector) -> Tensor:
                return vector.expand(*tokens.levels[level].shape, -1)

            monkeypatch.setattr(model, "text_features", say)
            found = ask(model, tokens, QUESTION, OPTIONS, reader=SimilarityReader())
            assert found.option == index
            assert found.scores is not None
            assert found.scores.max() == pytest.approx(1)

    def test_levels(self, model: PyraTok, tokens: TokenPyramid) -> None:
        def scores(*levels: int) -> Tensor:
            return SimilarityReader(levels or None).scores(model, tokens, QUESTION, OPTIONS)

        torch.testing.assert_close(scores(), torch.stack([scores(level) for level in range(4)]).mean(0))
        assert torch.equal(scores(3), scores(-1))
        with pytest.raises(ValueError, match="no level to read"):
            SimilarityReader([])


class TestProjector:
    def test_a_mark_and_a_bounded_number_of_vectors_per_level(self) -> None:
        assert projector(2)(SIGNS).shape == (2, 2 + 20 + 48, WIDTH)
        assert projector(2, max_tokens_per_level=12)(SIGNS).shape == (2, 2 + 12 + 12, WIDTH)

    def test_every_token_counts_and_gradients_reach_the_weights(self) -> None:
        reader, signs = projector(2, max_tokens_per_level=6), [level.clone().requires_grad_() for level in SIGNS]
        (reader(signs) * torch.randn(WIDTH)).sum().backward()
        assert all(level.grad is not None and level.grad.abs().sum(1).min() > 0 for level in signs)
        assert all(p.grad is not None and p.grad.any() for p in reader.parameters())

    def test_clips_do_not_mix(self) -> None:
        reader = projector(2)
        torch.testing.assert_close(reader(SIGNS)[1:], reader([level[1:] for level in SIGNS]))

    @pytest.mark.parametrize(("grid", "most", "left"), [((3, 4, 5), 60, (3, 4, 5)), ((9, 32, 32), 256, (5, 4, 8))])
    def test_the_longest_side_is_halved(self, grid: tuple[int, ...], most: int, left: tuple[int, ...]) -> None:
        assert sorted(fitting_grid(grid, most)) == sorted(left)
        assert fitting_grid((7, 7, 7), 1) == (1, 1, 1)

    def test_it_comes_back_from_disk_to_its_own_tokenizer(self, tmp_path: Path) -> None:
        tokenizer = ModelId(name="tiny", fingerprint="0" * 16)
        written = projector(2)
        save_projector(written, tmp_path / "p", tokenizer)
        again = load_projector(tmp_path / "p", tokenizer)
        assert again.config == written.config
        torch.testing.assert_close(again(SIGNS), written(SIGNS))
        assert not any(p.requires_grad for p in again.parameters())
        with pytest.raises(ModelLoadError, match=r"tiny \(0+\), not of other"):
            load_projector(tmp_path / "p", ModelId(name="other", fingerprint="f" * 16))

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_damaged_files_are_refused(self, tmp_path: Path, name: str) -> None:
        tokenizer = ModelId(name="tiny", fingerprint="0" * 16)
        save_projector(projector(2), tmp_path / "p", tokenizer)
        path = tmp_path / "p" / name
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ModelLoadError, match="p: "):
            load_projector(tmp_path / "p", tokenizer)

    def test_levels_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(ValueError, match="expected 4 levels"):
            projector(4)(SIGNS)
        with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
            projector(hidden_size=0)
