"""Tiny models, saved once per test process."""

from collections.abc import Callable

import pytest
import transformers

from tests.support.saved import Saved, save_both
from tests.support.tiny_models import build


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """Family name -> its tiny model, as in memory and as on the Hub. Read only."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    done: dict[str, Saved] = {}

    def get(family: str) -> Saved:
        if family not in done:
            done[family] = save_both(build(family), tmp_path_factory.mktemp(family))
        return done[family]

    return get
