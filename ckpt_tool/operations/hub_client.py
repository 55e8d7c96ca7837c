"""The Hugging Face Hub, through huggingface_hub: what it answers, and its refusals as our errors.

It is imported when it is asked: a merge without an upload pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ckpt_tool.common.errors import CkptError, UploadError
from ckpt_tool.common.version import __version__

T = TypeVar("T")


def make_api() -> Any:
    """The client, for HF_ENDPOINT; UploadError where huggingface_hub is told to be offline."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise UploadError(
            "`upload`: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: nothing can be uploaded",
            hint="Unset it, or merge without `upload`.",
        )
    return HfApi(library_name="ckpt-tool", library_version=__version__)


def find_token() -> str:
    """The token of this user; UploadError without one."""
    from huggingface_hub import get_token

    token: str | None = get_token()
    if token is None:
        raise UploadError(
            "`upload`: there is no token of the Hugging Face Hub",
            hint="Log in with: hf auth login (or set HF_TOKEN).",
        )
    return token


def make_refusal(endpoint: str, repo: str, why: str) -> UploadError:
    """The error for a repository that a token may not write to."""
    return UploadError(
        f"{endpoint}/{repo}: {why}",
        hint="Choose another name, or make a token that may write there:"
        f" {endpoint}/settings/tokens",
    )


def answer(api: Any, what: str, ask: Callable[[], T]) -> T:
    """What the Hub answers about ``what``; UploadError where it refuses, or is not there."""
    try:
        return ask()
    except CkptError:
        raise
    except Exception as error:  # of requests, httpx, hf_xet: whatever this version is built on
        raise _explained(api.endpoint, what, error) from error


def _explained(endpoint: str, what: str, error: Exception) -> UploadError:
    chain = _chain(error)
    said = " ".join(" ".join(str(part).split()) or type(part).__name__ for part in chain)
    answers = [getattr(part, "response", None) for part in chain]
    status = next((found.status_code for found in answers if found is not None), None)
    if status == 401:
        return UploadError(
            f"{endpoint}: refuses the token: {said}",
            hint="Log in again with: hf auth login (HF_TOKEN, where it is set, counts first).",
        )
    if status == 403:
        return make_refusal(endpoint, what, f"the token may not write there: {said}")
    if status is None and any(_is_of_network(part) for part in chain):
        return UploadError(
            f"{endpoint}: not reached, or gone: {what}: {said}",
            hint="Is there a network, and is HF_ENDPOINT right where it is set?",
        )
    return UploadError(f"{endpoint}: {what}: {said}")


def _chain(error: BaseException) -> list[BaseException]:
    """The error, and what it was raised from where it only says that something went wrong."""
    chain = [error]
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
        chain.append(error)
    return chain


def _is_of_network(error: BaseException) -> bool:
    library = type(error).__module__.split(".", maxsplit=1)[0]
    return isinstance(error, OSError) or library in ("httpx", "httpx2", "requests")


@contextmanager
def show_bars(wanted: bool) -> Iterator[None]:
    """huggingface_hub's progress bars, only if they are wanted; its own setting counts first.

    transformers switches them off along with its own, so that they may have to be switched on.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    are_on = not are_progress_bars_disabled()
    if wanted == are_on or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    switch, back = enable_progress_bars, disable_progress_bars
    if are_on:
        switch, back = back, switch
    switch()
    try:
        yield
    finally:
        back()
