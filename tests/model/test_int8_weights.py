"""Weights stored as whole numbers with a scale per output channel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyratok.model.pretrained import SCALE, WEIGHTS, ModelLoadError, from_pretrained, packed, save_pretrained, unpacked
from pyratok.model.pyratok import PyraTok
from tiny import random_video, tiny_pyratok

few = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "int8"
    tiny_pyratok().save_pretrained(folder, dtype=torch.int8)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_a_loaded_model_works_and_is_one_of_its_own(saved: Path) -> None:
    model, loaded, video = tiny_pyratok(), from_pretrained(saved), random_video()
    tokens = loaded.encode(video)
    assert loaded.decode(tokens).shape == video.shape
    assert tokens.model.name == model.name
    assert tokens.model.fingerprint != model.model_id.fingerprint
    with pytest.raises(ValueError, match="these tokens were made by"):
        model.decode(tokens)


def test_saving_what_was_loaded_gives_the_same_file(saved: Path, tmp_path: Path) -> None:
    loaded = from_pretrained(saved)
    assert isinstance(loaded, PyraTok)
    save_pretrained(loaded, tmp_path / "again", dtype=torch.int8)
    assert from_pretrained(tmp_path / "again").model_id == loaded.model_id
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (saved / WEIGHTS).read_bytes()


def test_weights_are_within_half_a_step_and_the_rest_is_untouched() -> None:
    model = tiny_pyratok()
    stored = packed(model, torch.int8)
    for name, value in unpacked(stored).items():
        before = model.state_dict()[name]
        if stored[name].dtype == torch.int8:
            step = stored[name + SCALE].float()
            assert step.numel() == before.shape[[n > 1 for n in step.shape].index(True)]
            assert bool(((value - before).abs() <= 0.501 * step).all()), name
        else:
            assert torch.equal(value, before)
    whole = {name for name, value in stored.items() if value.dtype == torch.int8}
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)
    assert whole == {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, kinds)}


def test_the_scale_of_a_transposed_convolution_is_per_output_channel() -> None:
    layer = nn.Sequential(nn.ConvTranspose3d(3, 5, (1, 2, 2), stride=(1, 2, 2), bias=False))
    assert packed(layer, torch.int8)[f"0.weight{SCALE}"].shape == (1, 5, 1, 1, 1)


@pytest.mark.parametrize("value", [0.0, 1e-30, 3e38])
def test_silent_and_extreme_channels(value: float) -> None:
    layer = nn.Sequential(nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        layer[0].weight[1] = value
    back = unpacked(packed(layer, torch.int8))["0.weight"][1]
    assert torch.isfinite(back).all()
    torch.testing.assert_close(back, torch.full((4,), value), rtol=1 / 254, atol=0)


def test_the_file_takes_about_a_quarter(saved: Path, tmp_path: Path) -> None:
    wide = {f"layer{i}": nn.Linear(256, 256) for i in range(2)}
    model = nn.ModuleDict(wide)
    sizes = []
    for dtype in (torch.float32, torch.int8):
        save_file(packed(model, dtype), tmp_path / "file")
        sizes.append((tmp_path / "file").stat().st_size)
    assert sizes[1] < 0.27 * sizes[0]


class TestDamage:
    @few
    @given(st.data())
    def test_no_changed_byte_gives_another_model(self, saved: Path, data: st.DataObject) -> None:
        folder = saved.parent / "flipped"
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        path = folder / WEIGHTS
        content = bytearray(path.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            loaded = from_pretrained(folder)
        except ModelLoadError:
            return
        assert loaded.model_id == from_pretrained(saved).model_id

    def test_scales_that_fit_nothing(self, copy: Path) -> None:
        tensors = load_file(copy / WEIGHTS)
        name = next(name for name in tensors if name.endswith(SCALE))
        weight = name.removesuffix(SCALE)
        without = {key: value for key, value in tensors.items() if key != name}
        assert "a file is damaged" in refusal(copy, without)
        assert f"{name} is the scale of no weight" in refusal(copy, tensors | {name: tensors[name].flatten()})
        assert f"{name} has shape" in refusal(copy, tensors | {name: torch.ones([7] * tensors[weight].ndim)})
        assert "foreign.scale is the scale of no weight" in refusal(copy, tensors | {f"foreign{SCALE}": torch.ones(1)})


def refusal(folder: Path, tensors: dict[str, Tensor]) -> str:
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ModelLoadError) as error:
        from_pretrained(folder)
    return str(error.value)
