"""What a page lists that a server makes of a folder: nginx, Apache, Python, rclone, ..."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep where a link leads."""
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def list_names(page: str, url: str) -> Sequence[str]:
    """The names that ``page``, which is at ``url``, links to directly below; of folders with ``/``.

    >>> list_names('<a href="../">up</a><a href="a%20b">a b</a><a href="c/">c</a>', "http://h/f/")
    ['a b', 'c/']
    """
    links = _Links()
    links.feed(page)
    names = (_find_name(link, url) for link in links.found)
    return sorted({name for name in names if name})


def _find_name(link: str, url: str) -> str:
    """Empty for a link that leads elsewhere, or is for the eye: of another order, for one."""
    try:
        there, here = urlsplit(urljoin(url, link)), urlsplit(url)
        rest = there.path[len(here.path) :]
        name = unquote(rest.removesuffix("/"), errors="strict")
    except ValueError:
        return ""
    is_below = (there.scheme, there.netloc) == (here.scheme, here.netloc)
    is_below = is_below and there.path.startswith(here.path) and not there.query
    if not is_below or "/" in name or "\0" in name or name in ("", ".", ".."):
        return ""
    return f"{name}/" if rest.endswith("/") else name
