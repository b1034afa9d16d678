"""Frozen transformers models from a folder: safetensors alone, no code from the folder, nothing downloaded.

Shared by the text encoders, the reference image encoders and the language model of the alignment loss. transformers
fills weights that a folder lacks with noise and says so in its log; here that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pyratok.vae.hub import read_json

CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# In a checkpoint of a language model with eyes: `model.language_model.*`, or in older ones `language_model.model.*`.
LANGUAGE_MODEL = r"^(model\.)?language_model\.(model\.)?"
UNUSED = re.compile(r"(^|\.)(pooler|mask_token)(\.|$)")
"""Weights that a checkpoint may lack, since nothing here reads them."""


def read_config(folder: Path) -> Any:
    """Configuration of the model in ``folder``; ValueError where there is none or transformers does not know it."""
    require("transformers")
    import transformers

    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the folder of a transformers model, with its {CONFIG}")
    try:
        model_type = read_json(path).get("model_type")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if model_type not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"{path}: transformers {transformers.__version__} does not know the architecture {model_type!r}; a newer "
            "transformers may (code that a folder brings along is never run)"
        )
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{path}: not a configuration that transformers accepts ({error})") from error


def load_tokenizer(folder: Path) -> Any:
    """Tokenizer of the model in ``folder``; ValueError where it or the configuration is missing or damaged."""
    config = read_config(folder)
    from transformers import AutoTokenizer

    # Without this look transformers makes up an empty tokenizer for some architectures.
    if not any((folder / name).is_file() for name in (*TOKENIZER_FILES, "vocab.json")):
        raise ValueError(f"{folder}: no tokenizer; put {TOKENIZER_FILES[0]} of the model beside its {CONFIG}")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{folder}: its tokenizer cannot be read ({error})") from error


def load_text_model(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    load_in_4bit: bool = False,
    outline: bool = False,
) -> Any:
    """The part of a model that reads text: a decoder or encoder whose ``last_hidden_state`` is ``[B, N, D]``.

    Of a model that also sees, only the language model is built and read; of an encoder-decoder, the encoder.
    Arguments and errors as in :func:`load_frozen`.
    """
    config = read_config(folder)
    text = config.get_text_config()
    auto_class = "AutoModelForTextEncoding" if config.is_encoder_decoder else "AutoModel"
    options: dict[str, Any] = {"device": device, "dtype": dtype, "load_in_4bit": load_in_4bit, "outline": outline}
    if text is not config:
        if (quantization := getattr(config, "quantization_config", None)) is not None:
            text.quantization_config = quantization
        options["key_mapping"] = {LANGUAGE_MODEL: _prefix(text)}
    elif not _prefix(text):
        # Here transformers would not see that `model.layers` in the file are the `layers` of the model.
        options["key_mapping"] = {r"^model\.": ""}
    return load_frozen(folder, text, auto_class, **options)


def _prefix(config: Any) -> str:
    """What transformers expects, and takes away, before the names of a base model's weights in a larger model."""
    import transformers

    prefix = getattr(transformers.MODEL_MAPPING.get(type(config), None), "base_model_prefix", "model")
    return f"{prefix}." if prefix else ""


def load_frozen(
    folder: Path,
    config: Any,
    auto_class: str = "AutoModel",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    load_in_4bit: bool = False,
    outline: bool = False,
    **options: Any,
) -> Any:
    """The model that ``config`` describes, with the weights of ``folder``: frozen, in evaluation mode, on ``device``.

    ``dtype`` None is what the configuration, or else the file, says. ``load_in_4bit`` quantizes linear layers while
    loading (bitsandbytes, NF4); a checkpoint that is quantized already, such as AWQ, says so in its ``config.json``
    and needs no option. ``outline`` builds the model, unquantized, and reads no weights: to count with.

    Raises ValueError naming folder and fix for weights that are missing, pickled, damaged or of another model;
    ImportError naming the package that a quantized model needs.
    """
    _require_safetensors(folder)
    if outline:
        return _outline(folder, config, auto_class, dtype)
    if load_in_4bit:
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(f"{folder}: the weights are quantized already; load them without load_in_4bit")
        options["quantization_config"] = four_bit_config()
    if load_in_4bit or getattr(config, "quantization_config", None) is not None:
        options["device_map"] = {"": device}
    import transformers

    loader = getattr(transformers, auto_class)
    try:
        with quiet():
            model, report = loader.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                torch_dtype=dtype or "auto",
                **options,
            )
    except ImportError as error:
        raise ImportError(f"{folder} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise ValueError(f"{folder}: its weights cannot be loaded as {type(config).__name__} ({error})") from error
    missing = sorted(name for name in report["missing_keys"] if not UNUSED.search(name))
    if missing:
        raise ValueError(
            f"{folder}: the weights do not fit {CONFIG}: {len(missing)} missing for {type(model).__name__}, such as "
            + ", ".join(missing[:3])
        )
    model.eval().requires_grad_(False)
    return model if "device_map" in options else model.to(device)


def _outline(folder: Path, config: Any, auto_class: str, dtype: torch.dtype | None) -> Any:
    import transformers

    try:
        with quiet():
            chosen = dtype or getattr(config, "torch_dtype", None) or torch.float32
            model = getattr(transformers, auto_class).from_config(config, torch_dtype=chosen)
    except Exception as error:
        raise ValueError(f"{folder}: no model can be made of its {CONFIG} ({error})") from error
    return model.eval().requires_grad_(False)


def four_bit_config() -> Any:
    """How bitsandbytes quantizes (NF4, twice, computing in bfloat16); ImportError without it."""
    if find_spec("bitsandbytes") is None:
        raise ImportError("loading in 4 bits needs the package bitsandbytes, which is not installed: pip install it")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers load without a progress bar or a report, and leave its settings as the user had them."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _require_safetensors(folder: Path) -> None:
    """Raise ValueError unless the weights of ``folder`` are safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"{folder / pickled[0]}: pickled weights can run code and are not read; convert them to safetensors "
            "(transformers' save_pretrained writes it)"
        )
    raise ValueError(f"{folder}: no weights; put model.safetensors beside its {CONFIG}")


def require(package: str) -> ModuleSpec:
    """Where an optional package is installed, without importing it; ImportError naming the extra where it is not."""
    spec = find_spec(package)
    if spec is None:
        name = package.replace("_", "-")
        raise ImportError(f"text needs the package {name}, which is not installed: pip install pyratok[text]")
    return spec
