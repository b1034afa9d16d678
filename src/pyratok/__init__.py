"""Video as a pyramid of discrete tokens: ``encode`` a clip, store or model its tokens, ``decode`` them back.

Public names load on first use, so that ``import pyratok`` costs nothing and runs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyratok.codec.container import PyraFileError, load_tokens, open_tokens, save_tokens
    from pyratok.data.video_io import VideoError, load_video, save_video
    from pyratok.model.pyratok import PyraTok
    from pyratok.types import Geometry, ModelId, TextEmbedding, TokenPyramid, Video

__version__ = "0.1.0"

_HOME = {
    "Geometry": "pyratok.types",
    "ModelId": "pyratok.types",
    "PyraFileError": "pyratok.codec.container",
    "PyraTok": "pyratok.model.pyratok",
    "TextEmbedding": "pyratok.types",
    "TokenPyramid": "pyratok.types",
    "Video": "pyratok.types",
    "VideoError": "pyratok.data.video_io",
    "load_tokens": "pyratok.codec.container",
    "load_video": "pyratok.data.video_io",
    "open_tokens": "pyratok.codec.container",
    "save_tokens": "pyratok.codec.container",
    "save_video": "pyratok.data.video_io",
}

__all__ = [
    "Geometry",
    "ModelId",
    "PyraFileError",
    "PyraTok",
    "TextEmbedding",
    "TokenPyramid",
    "Video",
    "VideoError",
    "__version__",
    "load_tokens",
    "load_video",
    "open_tokens",
    "save_tokens",
    "save_video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
