"""What all commands share: error messages, exit codes."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import typer

from ckpt_tool.cli.consoles import make_printable
from ckpt_tool.cli.flags import spell_flags, spell_hint
from ckpt_tool.cli.interrupts import EXIT_INTERRUPTED, raise_interrupts
from ckpt_tool.cli.retyping import retype, retype_last
from ckpt_tool.common.errors import (
    AmbiguousError,
    CheckpointError,
    CkptError,
    LostError,
    MappingError,
    UnknownFormatError,
    lacks_memory,
    say_cause,
    say_lack_of_memory,
)
from ckpt_tool.common.launchers import is_first, is_parallel
from ckpt_tool.common.packages import name_distribution, say_install
from ckpt_tool.common.remote.naming import name_places

EXIT_DIFFERENT = 1
EXIT_FAILED = 2

#: Set by the global ``--verbose``.
verbose = False

_LISTED = 20

Command = TypeVar("Command", bound=Callable[..., None])


def guard(command: Command) -> Command:
    """The one place where errors become messages and exit codes."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        raise_interrupts()
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            if is_first():
                say(f"interrupted. {interrupt}".rstrip())
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except (CkptError, OSError) as error:
            _explain(error, kwargs)
            raise typer.Exit(EXIT_FAILED) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # a mistake of ours must not look like exit 1, a difference
            _explain_unexpected(error)
            raise typer.Exit(EXIT_FAILED) from None
        finally:
            if is_parallel():  # torchrun stops the others when one is done with another code than 0
                signal.signal(signal.SIGTERM, signal.SIG_IGN)

    return run  # type: ignore[return-value]


@contextmanager
def guard_output(done: str = "") -> Iterator[None]:
    """Print the result: a reader who has seen enough (``| head``) does not change the exit code.

    CkptError where it cannot be printed: whoever asked would take nothing for an answer. ``done``
    is said then, too.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        said = f"the result cannot be printed to stdout ({error.strerror})"
        raise CkptError(said, hint=done) from error


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _make_line(text: str) -> str:
    """What the library says, as it is shown."""
    return make_printable(spell_flags(text))


def say(text: str) -> None:
    """A line of the program's own, to stderr."""
    _print(f"ckpt: {_make_line(text)}")


def _print(line: str) -> None:
    """To stderr; where that is full or gone, the exit code has to say it all."""
    with suppress(OSError):
        print(line, file=sys.stderr)  # noqa: T201


def _trace(error: BaseException) -> None:
    for text in traceback.format_exception(error):
        _print(make_printable(text.removesuffix("\n"), "\n"))


def _explain(error: CkptError | OSError, parameters: Iterable[str]) -> None:
    if verbose:
        _trace(error)
    # The first process of several says what went wrong in any of them.
    if not (error.is_said if isinstance(error, LostError) else is_first()):
        return
    _explain_known(error, parameters)


def explain(error: BaseException, parameters: Iterable[str], about: str = "") -> None:
    """An error that does not end the program, to stderr; ``about``: what it is about."""
    if verbose:
        _trace(error)
    if isinstance(error, (CkptError, OSError)):
        _explain_known(error, parameters, about)


def spell_error(error: BaseException) -> str:
    """The sentence of an error."""
    if isinstance(error, CkptError):
        return spell_flags(error.message)
    return say_cause(error) if isinstance(error, OSError) else str(error)


def _explain_known(error: CkptError | OSError, parameters: Iterable[str], about: str = "") -> None:
    if not isinstance(error, CkptError):
        say(f"error: {about}{say_cause(error)}")
        return
    say(f"error: {about}{error.message}")
    details: list[str] = []
    if isinstance(error, CheckpointError):
        details = [f"[{problem.kind}] {problem}" for problem in error.problems]
    elif isinstance(error, MappingError):
        details = list(error.names)
    elif isinstance(error, AmbiguousError):
        details = _list_choices(error, parameters)
    elif isinstance(error, UnknownFormatError) and error.expected:
        _print("  Expected one of these:")
        details = list(error.expected)
    for line in details if verbose else details[:_LISTED]:
        _print(f"  - {_make_line(line)}")
    if len(details) > _LISTED and not verbose:
        rest = len(details) - _LISTED
        _print(f"  - and {rest} more (--verbose lists them)")
    if hint := spell_hint(error.hint, parameters):
        _print(f"  {make_printable(hint)}")


def _list_choices(error: AmbiguousError, parameters: Iterable[str]) -> list[str]:
    """The command for each choice, and for the last step, where that is one of them."""
    from ckpt_tool.plans.provenance import find_run, find_run_folder

    choices = error.choices
    if "steps" in parameters:  # of a merge, for which a model is no choice
        choices = tuple(each for each in choices if each not in error.models) or choices
    listed = [retype(choice, sys.argv) for choice in choices]
    if error.has_steps and "step" in parameters:
        paths = [*map(Path, choices)]
        steps = [find_run(path)[1] or 0 for path in paths]
        if steps.count(max(steps)) == 1 and len({*map(find_run_folder, paths)} - {None}) == 1:
            listed.append(retype_last(sys.argv))
    return listed


def _explain_unexpected(error: Exception) -> None:
    """A lack of memory, which libraries report in many ways where there is a limit; or a bug.

    Or a package that is not there: whoever needs one says so before, where that is known.
    """
    if lacks_memory(error):
        say(f"error: {say_lack_of_memory()}")
        return
    package = name_distribution(getattr(error, "name", None) or "ckpt_tool")
    if isinstance(error, ModuleNotFoundError) and package != "ckpt_tool":
        if verbose:
            _trace(error)
        say(f"error: this needs {package}, which is not installed")
        _print(f"  {say_install([package])}")
        return
    _trace(error)
    say("error: this is a bug in ckpt; please report it with the lines above")


def warn(text: str) -> None:
    """A warning, to stderr."""
    say(f"warning: {text}")


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(name_places(json.dumps(value, indent=2, allow_nan=False)) + "\n")
