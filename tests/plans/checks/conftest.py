"""A user's cache of what classes want, and a process that has not imported transformers."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The entries of a user who has merged nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ckpt-tool" / "wanted"


@pytest.fixture
def beside(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As where nobody has imported transformers: it is asked in a process of its own."""
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    return user_cache
