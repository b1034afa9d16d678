"""Text encoders read from folders of the real transformers classes, tiny and random."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyratok.text import TextEncoder, hf_loading
from pyratok.text.hf import HFTextEncoder

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = "<pad> <s> </s> <unk> a dog runs on the grass two children play football in rain near red house".split()
DECODER = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GEMMA = DECODER | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
BERT = {key: DECODER[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")} | {
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
TEXTS = ["", "a dog", "two children play football in the rain near a red house", "rain"]


def qwen_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config=DECODER | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def gemma_vl() -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=GEMMA, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config)


MODELS: dict[str, Callable[[], Any]] = {
    "qwen2.5-vl": qwen_vl,
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)),
    "gemma3": gemma_vl,
    "gemma3-text": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GEMMA)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**DECODER, head_dim=8)),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**BERT)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    ),
}
ENCODERS = "bert", "mpnet", "t5"
NEEDS = {
    "qwen2.5-vl": "Qwen2_5_VLTextModel",
    "gemma3": "Gemma3Model",
    "gemma3-text": "Gemma3Model",
    "qwen3": "Qwen3Model",
}
"""What an older transformers lacks."""


def tokenizer(marks: bool = False, **special: str) -> Any:
    """Words to their index; with ``marks``, in ``<s> ... </s>``. Without ``special`` it has no pad token."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if marks:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **special)


Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Folder of each architecture, made once; encoders mark the ends of a text, decoders do not."""
    root = tmp_path_factory.mktemp("models")

    def folder_of(name: str) -> Path:
        if not hasattr(transformers, NEEDS.get(name, "AutoModel")):
            pytest.skip(f"this transformers has no {NEEDS[name]}")
        if not (root / name).exists():
            torch.manual_seed(0)
            model = MODELS[name]()
            for parameter in model.parameters():  # weights as they are drawn hardly mix tokens
                torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(root / name)
            encoder = name in ENCODERS
            special = {"pad_token": "<pad>"} if encoder else {}
            tokenizer(encoder, padding_side="left", **special).save_pretrained(root / name)
        return root / name

    return folder_of


@pytest.fixture
def folder(folders: Folders, tmp_path: Path) -> Path:
    """A copy of the Llama folder, to be spoilt."""
    return copy(folders("llama"), tmp_path)


def copy(folder: Path, to: Path) -> Path:
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a folder needs no network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", MODELS)
def test_contract(name: str, folders: Folders) -> None:
    encoder = HFTextEncoder(folders(name))
    out = encoder.encode(TEXTS)
    assert isinstance(encoder, TextEncoder)
    assert (encoder.name, encoder.dim, encoder.max_tokens) == (name, 32, 64)
    assert out.tokens.dtype == out.pooled.dtype == torch.float32
    assert out.mask.dtype == torch.bool
    assert out.tokens.shape == (4, out.mask.shape[1], 32)
    marks = 2 if name in ENCODERS else 0
    assert out.mask.sum(1).tolist() == [marks, 2 + marks, 11 + marks, 1 + marks]
    torch.testing.assert_close(out.pooled.norm(dim=-1), torch.ones(4))
    assert not any(p.requires_grad for p in encoder._model.parameters())
    assert not encoder._model.training


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", MODELS)
def test_a_text_does_not_depend_on_the_batch(name: str, pooling: Any, folders: Folders) -> None:
    encoder = HFTextEncoder(folders(name), pooling=pooling)
    batch = encoder.encode(TEXTS)
    for index, text in enumerate(TEXTS):
        single = encoder.encode([text])
        length = int(single.mask.sum())
        torch.testing.assert_close(single.pooled[0], batch.pooled[index], atol=1e-4, rtol=0)
        torch.testing.assert_close(single.tokens[0, :length], batch.tokens[index, :length], atol=1e-4, rtol=0)
        assert batch.mask[index].sum() == length
        assert not batch.tokens[index, length:].any()


@pytest.mark.parametrize("name", ["qwen2.5-vl", "gemma3", "llama"])
def test_numbers_are_those_of_the_whole_model(name: str, folders: Folders) -> None:
    ids = torch.tensor([[WORDS.index(word) for word in TEXTS[2].split()]])
    whole = transformers.AutoModel.from_pretrained(folders(name))
    with torch.no_grad():
        states = whole(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in (-1, -2, 0):
        found = HFTextEncoder(folders(name), layer=layer).encode([TEXTS[2]]).tokens
        torch.testing.assert_close(found, states[layer], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "gemma3", "t5"])
def test_only_the_part_that_reads_text_is_built(name: str, folders: Folders) -> None:
    model = HFTextEncoder(folders(name))._model
    assert not [key for key in model.state_dict() if "visi" in key or "visual" in key or "lm_head" in key]
    assert not [key for key in model.state_dict() if key.startswith("decoder.")]


def rename(folder: Path, pairs: dict[str, str]) -> None:
    """Give the weights of a folder the names that an older release wrote."""
    path = folder / "model.safetensors"
    weights = {}
    for name, value in load_file(path).items():
        for new, old in pairs.items():
            if name.startswith(new):
                name = old + name.removeprefix(new)
                break
        weights[name] = value
    save_file(weights, path, metadata={"format": "pt"})


OLDER = {
    "qwen2.5-vl": {"model.language_model.": "model.", "model.visual.": "visual."},
    "gemma3": {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
}


@pytest.mark.parametrize("name", OLDER)
@pytest.mark.parametrize("forward", [True, False])
def test_names_of_weights_new_and_old(name: str, forward: bool, folders: Folders, tmp_path: Path) -> None:
    wanted = HFTextEncoder(folders(name)).encode(TEXTS)
    copy(folders(name), tmp_path)
    rename(tmp_path, OLDER[name] if forward else {old: new for new, old in OLDER[name].items()})
    found = HFTextEncoder(tmp_path).encode(TEXTS)
    assert torch.equal(found.tokens, wanted.tokens)


def test_pooling_means_what_it_says(folders: Folders) -> None:
    for pooling in ("mean", "last"):
        out = HFTextEncoder(folders("llama"), pooling=pooling).encode([TEXTS[2], "a dog"])
        tokens = out.tokens[1, :2]
        wanted = tokens.mean(0) if pooling == "mean" else tokens[1]
        torch.testing.assert_close(out.pooled[1], wanted / wanted.norm())


def test_only_empty_texts(folders: Folders) -> None:
    out = HFTextEncoder(folders("llama")).encode(["", ""])
    assert not out.mask.any()
    assert not out.tokens.any()
    torch.testing.assert_close(out.pooled.norm(dim=-1), torch.ones(2))


def test_long_texts_are_cut(folders: Folders) -> None:
    assert HFTextEncoder(folders("qwen3"), max_tokens=5).encode(["dog " * 99]).mask.sum() == 5
    bert = HFTextEncoder(folders("bert"), max_tokens=999)
    assert bert.max_tokens == 64
    assert bert.encode(["dog " * 99]).mask.sum() == 64


def test_type_of_the_weights_is_kept_or_chosen(folders: Folders, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folders("qwen3"))
    model.bfloat16().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    stored, chosen = HFTextEncoder(tmp_path), HFTextEncoder(tmp_path, dtype=torch.float32)
    assert (stored._model.dtype, chosen._model.dtype) == (torch.bfloat16, torch.float32)
    assert stored.encode(["a dog"]).tokens.dtype == torch.float32


def test_autocast_does_not_lower_the_precision(folders: Folders) -> None:
    encoder = HFTextEncoder(folders("qwen2.5-vl"))
    plain = encoder.encode(["a dog"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode(["a dog"]).tokens, plain.tokens)


def test_loading_is_silent(folders: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    logging = transformers.utils.logging
    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    folder = folders("qwen2.5-vl")  # which may have to be written first, and not in silence
    capfd.readouterr()
    HFTextEncoder(folder).encode(TEXTS)
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling.*'max'"),
        ({"layer": 3}, "layer.*3"),
        ({"layer": -4}, "layer.*-4"),
        ({"max_tokens": 0}, "max_tokens.*0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, folders: Folders) -> None:
    with pytest.raises(ValueError, match=message):
        HFTextEncoder(folders("llama"), **options)


@pytest.mark.parametrize("texts", ["a dog", [], ()])
def test_wrong_texts(texts: list[str], folders: Folders) -> None:
    with pytest.raises(ValueError, match="sequence of one or more texts"):
        HFTextEncoder(folders("llama")).encode(texts)


def set_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def damage(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def foreign_code(folder: Path) -> None:
    """A folder that asks to have its own code run."""
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    set_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: drop(folder, "tokenizer*"), "no tokenizer.*tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer cannot be read"),
        (lambda folder: drop(folder, "config.json"), r"config\.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read as JSON"),
        (lambda folder: set_config(folder, model_type="no_such"), "does not know the architecture 'no_such'"),
        (lambda folder: set_config(folder, model_type=None), "does not know the architecture None"),
        (foreign_code, "does not know the architecture 'evil'"),
        (pickle_only, r"pytorch_model\.bin: pickled weights .* safetensors"),
        (lambda folder: drop(folder, "*.safetensors"), r"no weights; put model\.safetensors"),
        (damage, "weights cannot be loaded"),
        (lose_a_weight, r"1 missing for LlamaModel, such as (model\.)?norm\.weight"),
        (lambda folder: set_config(folder, hidden_size=64, head_dim=8), "weights"),
    ],
)
def test_bad_folders(spoil: Callable[[Path], object], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        HFTextEncoder(folder)
    assert str(folder) in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        HFTextEncoder(tmp_path / "absent")


def test_four_bits_need_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_loading, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(ImportError, match="needs the package bitsandbytes"):
        HFTextEncoder(folder, load_in_4bit=True)


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


@pytest.mark.skipif(any(map(find_spec, ("awq", "gptqmodel"))), reason="the package for AWQ is installed")
@pytest.mark.parametrize("name", ["llama", "qwen2.5-vl"])
def test_awq_checkpoints_name_the_package_they_need(name: str, folders: Folders, tmp_path: Path) -> None:
    copy(folders(name), tmp_path)
    set_config(tmp_path, quantization_config=AWQ)
    with pytest.raises(ImportError, match=r"needs a package.*(gptqmodel|awq)"):
        HFTextEncoder(tmp_path)
    with pytest.raises(ValueError, match="quantized already"):
        HFTextEncoder(tmp_path, load_in_4bit=True)


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_loading, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install pyratok\[text\]"):
        HFTextEncoder(folder)
