"""Exported graphs repeat the model, at sizes that the exporter never saw, and nothing half done is left behind."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.model.pretrained import from_pretrained
from pyratok.model.pyratok import PyraTok
from pyratok.quantization.bits import signs_to_ids
from pyratok.runtime import export
from pyratok.runtime.export import (
    SIDECAR,
    DecoderGraph,
    EncoderGraph,
    ExportError,
    export_graphs,
    padded_clip,
    shapes,
)
from pyratok.types import Geometry
from tiny import random_video, tiny_pyratok

Run = Callable[..., Sequence[Tensor]]
few = settings(deadline=None, max_examples=30)


def with_onnxruntime(folder: Path) -> tuple[Run, Run]:
    """Both graphs as somebody runs them who has the folder and not pyratok."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graphs = json.loads((folder / SIDECAR).read_text())["graphs"]

    def run(name: str) -> Run:
        session = onnxruntime.InferenceSession(str(folder / graphs[name]["file"]), providers=["CPUExecutionProvider"])
        names = [value["name"] for value in graphs[name]["inputs"]]
        assert [value.name for value in session.get_inputs()] == names
        assert [value.name for value in session.get_outputs()] == [value["name"] for value in graphs[name]["outputs"]]
        return lambda *inputs: [
            torch.from_numpy(value)
            for value in session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        ]

    return run("encoder"), run("decoder")


def with_torch(folder: Path) -> tuple[Run, Run]:
    encoder, decoder = (torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "decoder"))
    return encoder, lambda *ids: [decoder(*ids)]


def assert_repeats(model: PyraTok, runs: tuple[Run, Run], video: Tensor) -> None:
    """Equal ids, up to one bit in 10^6 where the value before the sign is all but zero; pixels to 1e-4."""
    encode, decode = runs
    tokens = model.encode(video)
    with torch.no_grad():
        presigns = [level.presign for level in model.lapq.quantize(model.vae.encode_taps(video))]
    found = encode(video)
    assert [ids.dtype for ids in found] == [torch.int32] * model.num_levels
    for ids, wanted, presign in zip(found, tokens.levels, presigns, strict=True):
        assert ids.shape == wanted.shape
        differ = ids != wanted
        if differ.any():  # what the levels after this one say follows from it
            near = presign.abs().amin(1) < 1e-4
            assert bool(near[differ].all())
            assert int(differ.sum()) <= max(1, presign.numel() // 10**6)
            break
    (pixels,) = decode(*tokens.levels)
    torch.testing.assert_close(pixels, model.decode(tokens).plain(), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in export.PACKAGES["onnx"]:
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    export_graphs(tiny_pyratok(), folder, "onnx")
    return folder


@pytest.fixture(scope="module")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch") / "tiny"
    export_graphs(tiny_pyratok(), folder, "torch")
    return folder


@pytest.mark.slow
class TestDynamic:
    """Sizes are neither those that were traced nor those that the exporter checks."""

    @pytest.mark.parametrize(("frames", "height", "width"), [(9, 32, 48), (17, 48, 80)])
    def test_onnx(self, onnx_folder: Path, frames: int, height: int, width: int) -> None:
        assert_repeats(tiny_pyratok(), with_onnxruntime(onnx_folder), random_video(1, frames, height, width))

    @pytest.mark.parametrize(("frames", "height", "width"), [(9, 32, 48), (17, 48, 80)])
    def test_torch(self, torch_folder: Path, frames: int, height: int, width: int) -> None:
        assert_repeats(tiny_pyratok(), with_torch(torch_folder), random_video(1, frames, height, width))

    def test_the_sidecar_tells_what_the_graphs_take(self, torch_folder: Path) -> None:
        facts, model = json.loads((torch_folder / SIDECAR).read_text()), tiny_pyratok()
        assert facts["model"] == {"name": "tiny", "fingerprint": model.model_id.fingerprint}
        assert (facts["dynamic"], facts["why_fixed"]) == (["frames", "height", "width"], None)
        assert facts["padding"] == {"frames": "1 + 4 n", "height": "16 n", "width": "16 n"}
        encoder = facts["graphs"]["encoder"]
        assert encoder["inputs"][0]["shape"] == [1, 3, "4*steps + 1", "16*rows", "16*columns"]
        assert encoder["outputs"] == facts["graphs"]["decoder"]["inputs"]
        assert encoder["outputs"][1]["shape"] == [1, "2*steps + 1", "2*rows", "2*columns"]
        digests = {file: hashlib.sha256((torch_folder / file).read_bytes()).hexdigest() for file in facts["sha256"]}
        assert facts["sha256"] == digests
        assert sorted(path.name for path in torch_folder.iterdir()) == sorted([*digests, SIDECAR])


@pytest.mark.slow
def test_an_image_is_a_graph_of_its_own(tmp_path: Path) -> None:
    facts = export_graphs(tiny_pyratok(), tmp_path / "image", "torch", frames=1, size=(32, 48))
    assert facts["dynamic"] == []
    assert facts["graphs"]["encoder"]["inputs"][0]["shape"] == [1, 3, 1, 32, 48]
    assert_repeats(tiny_pyratok(), with_torch(tmp_path / "image"), random_video(1, 1, 32, 48))


@pytest.mark.slow
def test_the_packaged_model_in_onnx(tmp_path: Path) -> None:
    for package in export.PACKAGES["onnx"]:
        pytest.importorskip(package)
    model = from_pretrained()
    assert isinstance(model, PyraTok)
    facts = export_graphs(model, tmp_path / "nano", "onnx")
    assert facts["why_fixed"] is None
    assert_repeats(model, with_onnxruntime(tmp_path / "nano"), random_video(1, 13, 64, 48))


class TestShapes:
    @few
    @given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
    def test_are_those_of_the_geometry(self, steps: int, rows: int, columns: int) -> None:
        strides = tiny_pyratok().strides
        video, *ids = shapes(strides, steps, rows, columns)
        geometry = Geometry(frames=video[2], height=video[3], width=video[4], strides=strides)
        assert geometry.padded == video[2:]
        assert [shape[1:] for shape in ids] == [geometry.grid(level) for level in range(len(strides))]

    def test_of_fixed_graphs_are_padded(self) -> None:
        strides = tiny_pyratok().strides
        assert padded_clip(strides, 33, (368, 640)) == (33, 368, 640)
        assert padded_clip(strides, None, None) == export.FIXED
        for frames, size in ((30, (360, 640)), (33, (360, 640)), (30, (368, 640))):
            with pytest.raises(ExportError, match="ask for 33 frames of 368x640"):
                padded_clip(strides, frames, size)


@pytest.fixture
def no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that are empty files and run as the model itself."""

    def write(program: Any, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
        path.write_bytes(path.name.encode())
        graph = (EncoderGraph if path.stem == "encoder" else DecoderGraph)(tiny_pyratok())

        def run(*values: Tensor) -> Sequence[Tensor]:
            found = graph(*values)
            return [found] if isinstance(found, Tensor) else found

        return run

    monkeypatch.setattr(torch.export, "export", lambda *inputs, **options: None)
    monkeypatch.setattr(export, "_write_torch", write)


@pytest.mark.usefixtures("no_exporter")
class TestFiles:
    def test_what_the_exporter_cannot_keep_open_is_fixed_and_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(graph: object, inputs: object, *, dynamic_shapes: dict[str, Any], strict: bool) -> None:
            if "video" in dynamic_shapes and any(axis is not None for axis in dynamic_shapes["video"]):
                raise RuntimeError("rows were specialised\nand more")

        monkeypatch.setattr(torch.export, "export", refuse)
        facts = export_graphs(tiny_pyratok(), tmp_path / "out", "torch", size=(32, 32))
        assert facts["dynamic"] == []
        assert facts["why_fixed"] == "the exporter gave up on the encoder: rows were specialised"
        assert facts["graphs"]["encoder"]["inputs"][0]["shape"] == [1, 3, export.FIXED[0], 32, 32]
        assert json.loads((tmp_path / "out" / SIDECAR).read_text()) == facts

    def test_what_cannot_be_exported_at_all_is_one_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*inputs: object, **options: object) -> None:
            raise RuntimeError("no such operator")

        monkeypatch.setattr(torch.export, "export", refuse)
        with pytest.raises(ExportError, match="gave up on the encoder: no such operator"):
            export_graphs(tiny_pyratok(), tmp_path / "out", "torch")
        assert not list(tmp_path.iterdir())

    def test_given_sizes_are_fixed_and_the_others_open(self, tmp_path: Path) -> None:
        for number, (options, dynamic) in enumerate(
            (
                ({"frames": 9}, ["height", "width"]),
                ({"size": (32, 32)}, ["frames"]),
                ({"frames": 5, "size": (32, 32)}, []),
            )
        ):
            facts = export_graphs(tiny_pyratok(), tmp_path / str(number), "torch", **options)  # type: ignore[arg-type]
            assert (facts["dynamic"], facts["why_fixed"]) == (dynamic, None)

    def test_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        export_graphs(tiny_pyratok(), tmp_path, "torch", frames=5, size=(32, 32))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.pt2", "encoder.pt2", SIDECAR]

    def test_a_wrong_graph_is_not_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def write(program: Any, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
            path.write_bytes(b"")
            wrong = DecoderGraph(tiny_pyratok(seed=1))
            if path.stem == "decoder":
                return lambda *ids: [wrong(*ids)]
            return lambda video: [signs_to_ids(-signs) for signs in tiny_pyratok().signs(video, None)]

        monkeypatch.setattr(export, "_write_torch", write)
        with pytest.raises(ExportError, match="do not repeat the model"):
            export_graphs(tiny_pyratok(), tmp_path / "out", "torch", frames=5, size=(32, 32))
        assert not list(tmp_path.iterdir())


class TestRefusals:
    def test_a_folder_that_holds_something(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        for folder, cause in (
            (tmp_path, "not empty"),
            (tmp_path / "file", "is a file"),
            (tmp_path / "a" / "b", "no folder"),
        ):
            with pytest.raises(ExportError, match=cause):
                export_graphs(tiny_pyratok(), folder, "torch")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_model_in_another_precision(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="load it in float32"):
            export_graphs(tiny_pyratok().bfloat16(), tmp_path / "out", "torch")

    @pytest.mark.parametrize("package", export.PACKAGES["onnx"])
    def test_a_missing_package_names_the_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
    ) -> None:
        for name in export.PACKAGES["onnx"]:
            monkeypatch.setitem(sys.modules, name, None if name == package else sys)
        with pytest.raises(ImportError, match=rf"{package}.*pip install pyratok\[export\]"):
            export_graphs(tiny_pyratok(), tmp_path / "out", "onnx")
        assert not list(tmp_path.iterdir())
