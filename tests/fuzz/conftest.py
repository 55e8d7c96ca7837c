"""What all tests of the fuzzer need before they change anything of it."""

import pytest

from tests.fuzz.modules import import_all


@pytest.fixture(autouse=True)
def warmed_up() -> None:
    """Import what a run needs while nothing is patched: it is done once in a process."""
    import_all()
