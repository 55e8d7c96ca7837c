"""What fails and may pass is asked for again, a few times."""

import pytest

from ckpt_tool.common.remote import patience
from ckpt_tool.common.remote.patience import ask_again


class Failing:
    """Raises what it is given, one after the other, then answers."""

    def __init__(self, *errors):
        self.errors = [*errors]
        self.attempts = 0

    def __call__(self):
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def is_timeout(error):
    return isinstance(error, TimeoutError)


def test_what_passes_is_waited_for():
    work = Failing(TimeoutError(1), TimeoutError(2))
    assert ask_again(work, is_timeout, (0, 0, 0)) == "answer"
    assert work.attempts == 3


def test_the_last_failure_is_the_one_that_is_said():
    work = Failing(*map(TimeoutError, range(9)))
    with pytest.raises(TimeoutError, match="3"):
        ask_again(work, is_timeout, (0, 0, 0))
    assert work.attempts == 4


def test_what_stays_is_said_at_once():
    work = Failing(TimeoutError(), PermissionError("no"))
    with pytest.raises(PermissionError, match="no"):
        ask_again(work, is_timeout, (0, 0, 0))
    assert work.attempts == 2


@pytest.mark.parametrize(("took", "attempts"), [(20.0, 2), (30.1, 2), (9.0, 4)])
def test_a_silent_server_is_asked_again_but_not_for_ever(monkeypatch, took, attempts):
    now = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    work = Failing(*map(TimeoutError, range(9)))

    def wait():
        now[0] += took
        return work()

    with pytest.raises(TimeoutError):
        ask_again(wait, is_timeout, (0, 0, 0, 0, 0))
    assert work.attempts == attempts
