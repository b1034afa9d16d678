"""A language model that reads vectors before a question, against what transformers computes in one go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyratok.text.reader import PromptedLM

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = "<pad> <s> </s> <unk> Question : Answer where is the dog ? left right on a red <user> <bot>".split()
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TEMPLATE = "{% for m in messages %}<user>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
GEMMA = SHAPE | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
QUESTION = "where is the dog ?"
ANSWERS = ["left", "on the right", "a red dog"]


def qwen_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config=SHAPE | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)),
    "llama-tied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**GEMMA, final_logit_softcapping=2.0, attn_implementation="eager")
    ),
    "qwen2.5-vl": qwen_vl,
}


def save(model: Any, folder: Path, template: str | None = None) -> Path:
    for parameter in model.parameters():  # weights as they are drawn hardly mix tokens
        torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=["<user>", "<bot>"], **marks
    )
    words.chat_template = template
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(MODELS["llama"](), tmp_path / "llama")


def vectors(count: int = 5) -> torch.Tensor:
    return torch.randn(count, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_likelihoods_are_those_of_the_whole_sequence(name: str, template: str | None, tmp_path: Path) -> None:
    reference = MODELS[name]()
    lm = PromptedLM(save(reference, tmp_path / name, template))
    found = lm.log_likelihoods(vectors(), QUESTION, ANSWERS)
    table = reference.get_input_embeddings()
    before, after = lm.prompt(QUESTION)
    assert before == ("<user>" if template else "<s>")
    for answer, value in zip(ANSWERS, found, strict=True):
        ids = lm.ids(answer)
        parts = [table(lm.ids(before)), vectors(), table(lm.ids(after)), table(ids)]
        with torch.no_grad():
            logits = reference(inputs_embeds=torch.cat(parts)[None]).logits[0]
        wanted = logits[-len(ids) - 1 : -1].log_softmax(-1).gather(1, ids[:, None]).mean()
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_writing_takes_the_most_likely_word_each_time(name: str, tmp_path: Path) -> None:
    reference = MODELS[name]()
    lm = PromptedLM(save(reference, tmp_path / name))
    lm._ends = set()
    written = lm.write(vectors(), QUESTION, max_new_tokens=6)
    table = reference.get_input_embeddings()
    sequence, ids = torch.cat([lm.embed("<s>"), vectors(), lm.embed(lm.prompt(QUESTION)[1])]), []
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(reference(inputs_embeds=sequence[None]).logits[0, -1].argmax()))
            sequence = torch.cat([sequence, table(torch.tensor(ids[-1:]))])
    assert written == lm._tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_writing_ends_at_the_end_mark(folder: Path) -> None:
    lm = PromptedLM(folder)
    lm._ends = set(range(len(WORDS)))
    assert lm.write(vectors(), QUESTION) == ""
    with pytest.raises(ValueError, match="max_new_tokens = 0"):
        lm.write(vectors(), QUESTION, max_new_tokens=0)


def test_the_end_marks_are_those_of_tokenizer_and_model(folder: Path) -> None:
    assert PromptedLM(folder)._ends == {2}


def test_the_answer_depends_on_the_vectors_and_the_question(folder: Path) -> None:
    lm = PromptedLM(folder)
    first = lm.log_likelihoods(vectors(), QUESTION, ANSWERS)
    assert not torch.equal(first, lm.log_likelihoods(-vectors(), QUESTION, ANSWERS))
    assert not torch.equal(first, lm.log_likelihoods(vectors(), "is a dog red ?", ANSWERS))
    assert torch.equal(first, lm.log_likelihoods(vectors(), QUESTION, ANSWERS)), "reading leaves nothing behind"
    torch.testing.assert_close(first.flip(0), lm.log_likelihoods(vectors(), QUESTION, ANSWERS[::-1]))


def test_an_answer_without_tokens_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="no token that llama knows"):
        PromptedLM(folder).log_likelihoods(vectors(), QUESTION, ["left", " "])


class TestHead:
    def test_a_model_without_one_is_refused(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"no lm_head\.weight"):
            PromptedLM(folder)

    def test_a_quantized_one_is_refused(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.qweight"] = weights.pop("lm_head.weight")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="lm_head is quantized"):
            PromptedLM(folder)

    def test_logits_that_are_scaled_are_refused(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"logit_scale": 0.5}))
        with pytest.raises(ValueError, match="sets logit_scale"):
            PromptedLM(folder)

    def test_damaged_weights_are_refused(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match="llama"):
            PromptedLM(folder)
