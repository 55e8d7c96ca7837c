"""Addresses of what lies elsewhere: ``s3://BUCKET/KEY`` and its like, in the place of a path.

``s3``, ``gs`` and ``az`` name a bucket (``az``: a container) and a key in it, or the beginning of
keys; ``hf`` a repository of the Hugging Face Hub, ``ORG/NAME`` or ``ORG/NAME@REVISION``, and what
is in it; ``http`` and ``https`` a host and a path. A command line's words are paths before anybody
looks at them, and a path has no ``//`` in it: ``s3:/BUCKET/KEY`` is the same address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike, fspath

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.remote.naming import SCHEMES, name_places

_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):(?:/{{1,2}}(?!/)(.*))?", re.DOTALL)
_OF_HUB = 2  # ORG and NAME


@dataclass(frozen=True, slots=True)
class Address:
    """``bucket``: bucket, container, repository or host; ``key``: the rest, without ``/`` around.

    >>> Address.parse("s3://models/qwen/step_10/"), str(Address.parse("s3:/models/qwen"))
    (Address(scheme='s3', bucket='models', key='qwen/step_10'), 's3://models/qwen')
    >>> Address.parse("hf://org/name@main/sub"), Address.parse("models/qwen")
    (Address(scheme='hf', bucket='org/name@main', key='sub'), None)
    """

    scheme: str
    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str | PathLike[str]) -> Address | None:
        """The address that ``text`` is; None where it is a path.

        UsageError where it begins as one and names no bucket.
        """
        matched = _ADDRESS.fullmatch(fspath(text))
        if matched is None:
            return None
        scheme, names = matched[1], [name for name in (matched[2] or "").split("/") if name]
        if any(name in (".", "..") or "\0" in name for name in names):
            raise UsageError(
                f"{scheme}://{'/'.join(names)!r}: has a part that no folder is called",
                hint="Write the address without . and .. in it.",
            )
        count = 1 if scheme != "hf" else _OF_HUB
        if len(names) < count:
            what = SCHEMES[scheme]
            form = f"{scheme}://ORG/NAME" if scheme == "hf" else f"{scheme}://{what.upper()}/..."
            raise UsageError(
                f"{scheme}://{'/'.join(names)}: names no {what}", hint=f"Write {form}."
            )
        return cls(scheme, "/".join(names[:count]), "/".join(names[count:]))

    def __str__(self) -> str:
        key = f"/{self.key}" if self.key else ""
        return f"{self.scheme}://{self.bucket}{key}"

    def join(self, name: str) -> Address:
        """What is called ``name`` below."""
        return Address(self.scheme, self.bucket, f"{self.key}/{name}" if self.key else name)

    def holds(self, other: Address) -> bool:
        """Whether ``other`` is this, or below it."""
        is_same = (self.scheme, self.bucket) == (other.scheme, other.bucket)
        return is_same and (not self.key or f"{other.key}/".startswith(f"{self.key}/"))

    @property
    def parent(self) -> Address | None:
        """What is above; None for a bucket."""
        if not self.key:
            return None
        return Address(self.scheme, self.bucket, self.key.rpartition("/")[0])


def find_address(path: str | PathLike[str]) -> Address | None:
    """The address that a path stands for, or is; None where it is neither."""
    return Address.parse(name_places(fspath(path)))


def is_remote(path: str | PathLike[str]) -> bool:
    """Whether ``path`` is an address."""
    return _ADDRESS.fullmatch(fspath(path)) is not None
