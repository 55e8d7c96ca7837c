"""A request to a server by Python alone: for what obstore does not say, such as where it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tool.common.errors import StoreError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.patience import ask_again
from ckpt_tool.common.version import __version__

_SECONDS = 30  # without a byte
#: What is worth asking again.
BUSY = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came: ``url`` is where redirects ended, ``content`` the first bytes of the body."""

    status: int
    url: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_page(self) -> bool:
        """Whether it is text for people."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip() == "text/html"


class _BusyError(OSError):
    """An answer that says to ask later."""


def ask(method: str, url: str, address: Address, *, most: int = 0) -> Answer:
    """What a server answers, with ``most`` bytes of the body; a refusal is an answer, too.

    A busy server and a broken connection are tried again; StoreError where that does not help.
    """
    from http.client import HTTPException

    def ask_once() -> Answer:
        answer = _ask(method, url, most)
        if answer.status in BUSY:
            raise _BusyError(f"the server answers {answer.status}")
        return answer

    kinds = (OSError, HTTPException)
    try:
        return ask_again(ask_once, lambda error: isinstance(error, kinds))
    except _BusyError as error:
        said = str(error)
    except kinds as error:
        cause = getattr(error, "reason", error)
        said = f"not reached: {getattr(cause, 'strerror', '') or cause or type(cause).__name__}"
    raise StoreError(f"{address}: {said}", hint="Look at the address and the network.")


def _ask(method: str, url: str, most: int) -> Answer:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    request = Request(url, method=method, headers={"User-Agent": f"ckpt-tool/{__version__}"})
    found: Any
    try:
        found = urlopen(request, timeout=_SECONDS)
    except HTTPError as error:
        found = error
    with found:
        return Answer(found.status, found.url, found.headers, found.read(most) if most else b"")
