"""Configurations: frozen, checked when made, and the same after a trip through JSON."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pyratok.types import Stride

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass config as JSON-ready values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value

    result = plain(config)
    assert isinstance(result, dict)
    return result


def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """Inverse of :func:`to_dict`, strict: raises ValueError for a key that is unknown (naming the nearest known one) or
    missing, and for a value of another type than the field's."""
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    fields: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{cls.__name__} has no field {key!r}{nearest(key, known)}")
        try:
            fields[key] = _convert(hints[key], value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    for key, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        _require(key in fields or not required, f"{cls.__name__} needs the field {key!r}")
    return cls(**fields)


def set_field(fields: dict[str, Any], path: str, value: Any) -> bool:
    """Set a dotted field, such as ``train.steps``, of what :func:`to_dict` gave; False where it is not there."""
    section, name = section_of(fields, path), path.rpartition(".")[2]
    if name not in section:
        return False
    section[name] = value
    return True


def section_of(fields: dict[str, Any], path: str) -> dict[str, Any]:
    """The part of ``fields`` that a dotted field would be in; empty where there is no such part."""
    section: Any = fields
    for parent in path.split(".")[:-1]:
        section = section.get(parent) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else {}


def field_paths(fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all fields of what :func:`to_dict` gave."""
    return [
        path
        for key, value in fields.items()
        for path in (field_paths(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A hint such as ``; did you mean 'width'?``, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _convert(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        kind = typing.cast(type, hint)
        _require(isinstance(value, dict), f"expected an object with the fields of {kind.__name__}, got {value!r}")
        return from_dict(kind, value)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), f"expected a list, got {value!r}")
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        _require(len(inner) == len(value), f"expected {len(inner)} values, got {value!r}")
        return tuple(_convert(kind, item) for kind, item in zip(inner, value, strict=True))
    if origin is typing.Literal:
        _require(value in args, f"expected one of {', '.join(map(repr, args))}, got {value!r}")
    elif hint is float:
        # NaN compares false, and an integer may be too large for a float.
        fits = type(value) in (int, float) and abs(value) <= sys.float_info.max
        _require(fits, f"expected a finite number, got {value!r}")
        return float(value)
    elif isinstance(hint, type):
        _require(type(value) is hint, f"expected {hint.__name__}, got {value!r}")
    return value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Shape of a Wan-family causal video VAE; the names follow diffusers' ``AutoencoderKLWan``.

    Stage i of the encoder halves space after its residual blocks when ``spatial_downsample[i]``, and time when
    ``temporal_downsample[i]``; the last stage does neither. ``spatial_downsample`` and ``mid_attention`` go beyond
    diffusers: released Wan models leave them at their defaults.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    spatial_downsample: tuple[bool, ...] | None = None
    is_residual: bool = False
    patch_size: int = 1
    mid_attention: bool = True
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        stages = len(self.dim_mult)
        _require(stages >= 2, f"dim_mult needs at least two stages, got {self.dim_mult}")
        for name in ("temporal_downsample", "spatial_downsample"):
            flags = getattr(self, name)
            if flags is not None:
                _require(len(flags) == stages - 1, f"{name} needs {stages - 1} entries, got {flags}")
        _require(min(self.dim_mult) >= 1, f"dim_mult must be at least 1, got {self.dim_mult}")
        for name in ("base_dim", "decoder_base_dim", "z_dim", "num_res_blocks", "patch_size"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None:
                _require(len(values) == self.z_dim, f"{name} needs z_dim = {self.z_dim} entries, got {len(values)}")

    @property
    def halves_space(self) -> tuple[bool, ...]:
        """Per transition between stages: is space halved?"""
        return self.spatial_downsample or (True,) * (len(self.dim_mult) - 1)

    @property
    def stage_strides(self) -> tuple[Stride, ...]:
        """Stride in frames, rows and columns of the features of each stage."""
        strides = [(1, self.patch_size, self.patch_size)]
        for in_time, in_space in zip(self.temporal_downsample, self.halves_space, strict=True):
            t, h, w = strides[-1]
            s = 2 if in_space else 1
            strides.append((t * (2 if in_time else 1), h * s, w * s))
        return tuple(strides)

    @property
    def latent_stride(self) -> Stride:
        return self.stage_strides[-1]

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """Channels of every tap: one per stage, then the middle block."""
        widths = tuple(self.base_dim * m for m in self.dim_mult)
        return (*widths, widths[-1])

    @property
    def tap_strides(self) -> tuple[Stride, ...]:
        """Strides of every tap: one per stage, then the middle block."""
        return (*self.stage_strides, self.latent_stride)


@dataclass(frozen=True, kw_only=True)
class LaPQConfig:
    """Shape of the pyramid quantizer (PyraTok, arXiv 2601.16210, sec. 3.2.1; our reading in docs/architecture.md).

    ``taps``: which encoder feature feeds each level (index into the VAE's taps). ``strides``: token grid of each
    level as a stride in frames, rows and columns of the video. ``width``: channels of the quantized features.
    ``num_heads`` of the attention to text; ``text_dim`` is the width of the text encoder's tokens.
    ``level_dropout``: probability that a training clip is decoded from a random prefix of the levels.
    """

    taps: tuple[int, ...] = (0, 1, 2, 3)
    strides: tuple[Stride, ...] = ((1, 32, 32), (4, 8, 8), (4, 8, 8), (4, 8, 8))
    width: int = 128
    num_bits: int = 16
    num_heads: int = 4
    text_dim: int = 384
    level_dropout: float = 0.3

    def __post_init__(self) -> None:
        _require(len(self.taps) == len(self.strides), f"{len(self.taps)} taps for {len(self.strides)} strides")
        _require(len(self.taps) >= 1, "LaPQ needs at least one level")
        _require(1 <= self.num_bits <= 24, f"num_bits must be in 1..24, got {self.num_bits}")
        for name in ("width", "num_heads", "text_dim"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(min(map(min, self.strides)) >= 1, f"strides must be at least 1, got {self.strides}")
        heads = self.num_heads
        _require(self.width % heads == 0, f"width {self.width} is not a multiple of num_heads {heads}")
        _require(0.0 <= self.level_dropout <= 1.0, f"level_dropout must be in [0, 1], got {self.level_dropout}")
        previous = self.strides[0]
        for stride in self.strides:
            _require(
                all(a % b == 0 or b % a == 0 for a, b in zip(stride, previous, strict=True)),
                f"neighbouring strides must divide each other, got {previous} then {stride}",
            )
            _require(stride[1] <= previous[1] and stride[2] <= previous[2], "levels must not get coarser in space")
            _require(stride[0] >= previous[0], "levels must not get denser in time")
            previous = stride

    @property
    def num_levels(self) -> int:
        return len(self.strides)


@dataclass(frozen=True, kw_only=True)
class TextHeadConfig:
    """Shape of the head from tokens to the text space: channels and blocks at half the resolution, and how many cells
    a block looks across."""

    width: int = 256
    num_blocks: int = 4
    kernel: int = 3

    def __post_init__(self) -> None:
        for name in ("width", "num_blocks", "kernel"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(self.kernel % 2 == 1, f"kernel must be odd, so that a cell is its centre, got {self.kernel}")


@dataclass(frozen=True, kw_only=True)
class PyraTokConfig:
    """A whole tokenizer: a name people read, the VAE, the quantizer, and the text head where there is one."""

    name: str = "pyratok"
    vae: WanVAEConfig = WanVAEConfig()
    lapq: LaPQConfig = LaPQConfig()
    text_head: TextHeadConfig | None = None

    def __post_init__(self) -> None:
        taps = self.vae.tap_strides
        for level, (tap, stride) in enumerate(zip(self.lapq.taps, self.lapq.strides, strict=True), start=1):
            _require(0 <= tap < len(taps), f"level {level} uses tap {tap}; the VAE has taps 0..{len(taps) - 1}")
            _require(
                all(s % t == 0 for s, t in zip(stride, taps[tap], strict=True)),
                f"level {level}: stride {stride} is not a multiple of its tap's stride {taps[tap]}",
            )
        _require(
            self.lapq.strides[-1] == self.vae.latent_stride,
            f"the last level must lie on the latent grid {self.vae.latent_stride}, got {self.lapq.strides[-1]}",
        )
