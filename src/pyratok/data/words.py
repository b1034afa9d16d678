"""Seen and unseen words: which objects training may show and name."""

from __future__ import annotations

import hashlib


def is_unseen(caption: str) -> bool:
    """Is the object of this caption kept out of training, so that zero-shot use can be measured on it?

    A quarter of all captions are: those whose SHA-1, of the lower-cased text, begins with 0, 1, 2 or 3.
    """
    return hashlib.sha1(caption.lower().encode()).hexdigest()[0] in "0123"
