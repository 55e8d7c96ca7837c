"""`make test-oldest` installs the oldest versions that pyproject.toml claims."""

import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="there since Python 3.11")
ROOT = Path(__file__).parents[1]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_oldest_versions_that_are_claimed_are_the_ones_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(
        line.split("==")
        for line in (ROOT / ".ci" / "constraints-oldest.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    pins = {normalised(name): version for name, version in pinned.items()}
    for claim in project["dependencies"] + project["optional-dependencies"]["test"]:
        name, minimum = re.match(r"([\w.-]+)>=([\d.]+)", claim).groups()
        assert f"{pins[normalised(name)]}.0.0".startswith(f"{minimum}."), claim
