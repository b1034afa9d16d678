from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pyratok.model import pretrained
from pyratok.model.pretrained import CONFIG, WEIGHTS, ModelLoadError, from_pretrained, save_pretrained
from pyratok.model.pyratok import PyraTok
from pyratok.nn.lora import LoRAConfig, inject
from tiny import random_video, tiny_pyratok

few = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pyratok().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refusal(folder: Path | str) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(ModelLoadError) as error:
        from_pretrained(folder)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


class TestRoundTrip:
    def test_reloaded_is_the_same_model(self, saved: Path) -> None:
        model, loaded, video = tiny_pyratok(), from_pretrained(saved), random_video(2)
        assert isinstance(loaded, PyraTok)
        assert loaded.model_id == model.model_id
        assert loaded.encode(video) == model.encode(video)
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_files_of_every_type_name_what_they_hold(self, tmp_path: Path, dtype: torch.dtype) -> None:
        save_pretrained(tiny_pyratok(), tmp_path / "first", dtype=dtype)
        first = from_pretrained(tmp_path / "first")
        assert isinstance(first, PyraTok)
        assert next(first.parameters()).dtype == torch.float32
        save_pretrained(first, tmp_path / "second", dtype=dtype)
        second = from_pretrained(tmp_path / "second")
        assert second.model_id == first.model_id
        assert second.encode(random_video()) == first.encode(random_video())
        assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "second" / WEIGHTS).read_bytes()

    def test_precision_of_the_run_makes_no_other_model(self, saved: Path) -> None:
        tokens = from_pretrained(saved, dtype=torch.bfloat16).encode(random_video())
        assert tokens.model == from_pretrained(saved).model_id
        assert from_pretrained(saved, dtype=torch.bfloat16).decode(tokens).dtype == torch.float32

    def test_adapters_are_merged(self, tmp_path: Path) -> None:
        model = tiny_pyratok()
        inject(model.vae.encoder, LoRAConfig(rank=2))
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(tmp_path / "merged")
        loaded, video = from_pretrained(tmp_path / "merged"), random_video()
        assert not any("parametrizations" in name for name in loaded.state_dict())
        with torch.inference_mode():
            ours, theirs = model.vae.encode_taps(video), loaded.vae.encode_taps(video)  # type: ignore[operator,union-attr]
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert any("parametrizations" in name for name in model.state_dict()), "saving leaves the model as it is"

    def test_loading_draws_no_random_numbers(self, saved: Path) -> None:
        before = torch.get_rng_state()
        from_pretrained(saved)
        assert torch.equal(torch.get_rng_state(), before)


class TestSaving:
    def test_other_files_of_the_folder_stay(self, copy: Path) -> None:
        (copy / "README.md").write_text("a card")
        tiny_pyratok(seed=1).save_pretrained(copy)
        assert from_pretrained(copy).model_id == tiny_pyratok(seed=1).model_id
        assert (copy / "README.md").read_text() == "a card"

    def test_overwriting_leaves_one_file_of_weights(self, copy: Path) -> None:
        for seed in (1, 2, 2):
            tiny_pyratok(seed).save_pretrained(copy)
            assert from_pretrained(copy).model_id == tiny_pyratok(seed).model_id
            assert len(list(copy.iterdir())) == 2

    @pytest.mark.parametrize("renames", [0, 1])
    def test_killed_while_overwriting(self, copy: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
        """Only the last rename counts; until then the folder is the old model."""
        done: list[Path] = []
        move = Path.replace

        def replace(self: Path, target: Path) -> Path:
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(target)
            return move(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                tiny_pyratok(seed=1).save_pretrained(copy)
        assert len(done) == renames
        assert from_pretrained(copy).model_id == tiny_pyratok().model_id

    def test_killed_right_after(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unlink(self: Path, missing_ok: bool = False) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink)
            with pytest.raises(KeyboardInterrupt):
                tiny_pyratok(seed=1).save_pretrained(copy)
        assert from_pretrained(copy).model_id == tiny_pyratok(seed=1).model_id

    @pytest.mark.parametrize("exists", [True, False])
    def test_whole_or_not_at_all(self, copy: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
        def full_disk(tensors: Any, path: Path) -> None:
            Path(path).write_bytes(b"a beginning")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pretrained, "save_file", full_disk)
        target = copy if exists else copy.parent / "new"
        with pytest.raises(OSError, match="No space"):
            tiny_pyratok(seed=1).save_pretrained(target)
        assert [path.name for path in copy.parent.iterdir()] == ["copy"]
        assert from_pretrained(copy).model_id == tiny_pyratok().model_id

    def test_a_mix_of_old_and_new_is_refused(self, copy: Path, tmp_path: Path) -> None:
        """What is left when the machine dies between the two files."""
        tiny_pyratok(seed=1).save_pretrained(tmp_path / "new")
        shutil.copy(tmp_path / "new" / WEIGHTS, copy / WEIGHTS)
        assert "do not match their fingerprint" in refusal(copy)


class TestDamage:
    @few
    @given(st.data())
    def test_no_changed_byte_gives_another_model(self, saved: Path, data: st.DataObject) -> None:
        folder = saved.parent / "flipped"
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        path = folder / data.draw(st.sampled_from([WEIGHTS, CONFIG]))
        content = bytearray(path.read_bytes())
        # Half of the time in the header, which is small beside the tensors.
        position = data.draw(st.integers(0, min(2000, len(content) - 1)) | st.integers(0, len(content) - 1))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            loaded = from_pretrained(folder)
        except ModelLoadError:
            return
        # Only the name, and blanks, may differ.
        assert loaded.model_id.fingerprint == tiny_pyratok().model_id.fingerprint

    @pytest.mark.parametrize("size", [0, 5, 1000, -1])
    def test_truncated_weights(self, copy: Path, size: int) -> None:
        content = (copy / WEIGHTS).read_bytes()
        (copy / WEIGHTS).write_bytes(content[:size])
        assert "cannot be read as safetensors" in refusal(copy)

    def test_missing_files(self, copy: Path) -> None:
        (copy / WEIGHTS).unlink()
        assert WEIGHTS in refusal(copy)
        (copy / CONFIG).unlink()
        assert "not a pyratok model" in refusal(copy)
        assert "no such folder" in refusal(copy / "nowhere")

    @pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\xff", '{"format": "another"}'])
    def test_config_of_another_kind(self, copy: Path, text: str) -> None:
        (copy / CONFIG).write_text(text, encoding="latin-1")
        assert CONFIG in refusal(copy)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.update(version=2), "format version 2, this pyratok reads version 1"),
            (lambda c: c.update(fingerprint="0" * 16), "do not match their fingerprint 0000000000000000"),
            (lambda c: c.update(levels=3), "PyraTokConfig has no field 'levels'"),
            (lambda c: c["lapq"].update(widht=3), "LaPQConfig has no field 'widht'; did you mean 'width'?"),
            (lambda c: c["lapq"].update(width=32), "the weights do not fit the configuration"),
            (lambda c: c["lapq"].update(width="16"), "lapq: width: expected int, got '16'"),
            (lambda c: c["lapq"].update(strides=5), "lapq: strides: expected a list, got 5"),
            (lambda c: c["lapq"].update(strides=[[1, 2]]), "expected 3 values"),
            (lambda c: c["lapq"].update(num_heads=True), "num_heads: expected int, got True"),
            (lambda c: c["vae"].update(base_dim=10**6), "the configuration asks for (1000000, 48, 3, 3, 3)"),
            (lambda c: c["vae"].update(base_dim=0), "base_dim must be at least 1, got 0"),
            (lambda c: c["vae"].update(num_res_blocks=2), "missing, such as"),
            (lambda c: c.update(vae=None), "vae: expected an object"),
            (lambda c: c.update(vae=5), "vae: expected an object with the fields of WanVAEConfig, got 5"),
            (lambda c: c["lapq"].update(level_dropout="x"), "level_dropout: expected a finite number, got 'x'"),
            (
                lambda c: c["lapq"].update(level_dropout=float("nan")),
                "level_dropout: expected a finite number, got nan",
            ),
            (lambda c: c["lapq"].update(level_dropout=10**400), "level_dropout: expected a finite number, got 1000"),
            (lambda c: c.update(weights="../copy/model.safetensors"), "weights: expected the name of a file"),
            (lambda c: c.update(weights=5), "weights: expected the name of a file"),
            (lambda c: c.update(weights="other.safetensors"), "other.safetensors cannot be read"),
            (lambda c: c["vae"].update(z_dim=None), "vae: z_dim: expected int, got None"),
        ],
    )
    def test_config_that_does_not_fit(self, copy: Path, change: Callable[[Any], None], message: str) -> None:
        config = json.loads((copy / CONFIG).read_text())
        change(config)
        (copy / CONFIG).write_text(json.dumps(config))
        assert message in refusal(copy)


def test_only_a_hub_id_is_looked_for_on_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, str | None]] = []

    def snapshot(name: str, revision: str | None = None, **options: Any) -> str:
        asked.append((name, revision))
        if name == "owner/unknown":
            raise OSError("not reachable")
        return str(saved)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert from_pretrained("owner/name@v2").model_id == tiny_pyratok().model_id
    assert "neither a folder here nor reachable on the hub" in refusal("owner/unknown")
    for path in ("./owner/name", "/owner/name", "a/b/c", "name"):
        assert "no such folder" in refusal(path)
    assert asked == [("owner/name", "v2"), ("owner/unknown", None)]
