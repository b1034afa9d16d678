from __future__ import annotations

import pytest

from pyratok.data import manifests


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken files of a test are not listed when pytest ends."""
    monkeypatch.setattr(manifests, "_left_out", {})
