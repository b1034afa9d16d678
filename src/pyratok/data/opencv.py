"""OpenCV, which only training needs."""

from __future__ import annotations

from types import ModuleType


def opencv() -> ModuleType:
    """The module ``cv2``; ImportError naming the extra where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise ImportError("training clips are made with OpenCV: pip install pyratok[train]") from None
    module: ModuleType = cv2
    return module
