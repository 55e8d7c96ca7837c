"""Where the two sides of a report come from: format, files, mesh, dtypes."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence

from ckpt_tool.cli.report.text import make_breakable, make_items, make_tag
from ckpt_tool.common.wording import count_noun, format_bytes
from ckpt_tool.compare.mismatch import find_stored_dtype
from ckpt_tool.operations.sides import Side
from ckpt_tool.operations.verify import VerifyResult
from ckpt_tool.readers.base import ShardFile


def make_fact(label: str, text: str) -> str:
    """A term of a list, and what it is."""
    return make_tag("dt", html.escape(label)) + make_tag("dd", html.escape(text))


def make_folded(summary: str, content: str, *, opened: bool = False) -> str:
    """What is seen on a click."""
    attributes = {"open": "open"} if opened else {}
    return make_tag("details", make_tag("summary", html.escape(summary)) + content, **attributes)


def make_sides(result: VerifyResult) -> str:
    """Both sides beside each other."""
    sides = _side("Checkpoint (a)", result.left) + _side("Reference (b)", result.right)
    return make_tag("div", sides, class_="sides")


def _side(title: str, side: Side) -> str:
    checkpoint = side.checkpoint
    facts = [("Format", checkpoint.format), ("Files", _files(checkpoint.files))]
    if checkpoint.world_size is not None:
        facts.append(("World size", f"{checkpoint.world_size:,}"))
    if checkpoint.mesh is not None:
        facts.append(("Mesh", str(checkpoint.mesh)))
    facts.append(("Tensors", f"{len(side.tensors):,}"))
    facts.append(("Dtypes", _dtypes(side)))
    if side.config is not None and (side.config.architecture or side.config.model_type):
        facts.append(("Model", side.config.architecture or side.config.model_type))
    parts = (
        make_tag("h3", title),
        make_tag("p", make_breakable(str(checkpoint.path)), class_="path"),
        make_tag("dl", "".join(make_fact(*fact) for fact in facts if fact[1]), class_="facts"),
        make_folded(count_noun(len(checkpoint.files), "file"), _file_items(checkpoint.files)),
    )
    return make_tag("div", "".join(parts), class_="side")


def _files(files: Sequence[ShardFile]) -> str:
    return f"{len(files):,} ({format_bytes(sum(file.bytes for file in files))})"


def _file_items(files: Iterable[ShardFile]) -> str:
    return make_items(
        f"{file.path} · {format_bytes(file.bytes)}"
        + ("" if file.rank is None else f" · rank {file.rank}")
        for file in files
    )


def _dtypes(side: Side) -> str:
    counts = Counter(find_stored_dtype(tensor).name for tensor in side.tensors.values())
    return ", ".join(f"{name} x {count:,}" for name, count in counts.most_common())
