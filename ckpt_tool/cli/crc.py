"""``--check-crc``, and what is said of checksums."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt_tool.common.wording import count_noun, format_bytes

if TYPE_CHECKING:
    from ckpt_tool.operations.inspect import Scrub
    from ckpt_tool.plans.options import CrcCheck

#: Of commands that read tensors anyway.
CheckCrc = Annotated[
    bool | None,
    typer.Option(
        "--check-crc/--no-check-crc",
        help="Hold what is read of torch's archives against their checksums. [default: unless"
        " --no-fsync, what can be without reading it twice]",
        show_default=False,
    ),
]

#: Of commands that would not read all of it.
CheckAllCrc = Annotated[
    bool,
    typer.Option("--check-crc", help="Read every record of torch's archives against its checksum."),
]


def list_crc_lines(check: CrcCheck | None) -> list[str]:
    """What a command that writes says of the checksums of its sources; nothing of none."""
    if check is None:
        return []
    lines = []
    if check.num_records:
        where = count_noun(check.num_files, "file")
        lines.append(f"{count_noun(check.num_records, 'record')} of {where}, as written")
    if check.num_unchecked:
        count = count_noun(check.num_unchecked, "record")
        lines.append(f"not checked: {count}, read in part; --check-crc reads the rest")
    if check.unsaid:
        lines.append(f"not checked: {_describe_unsaid(check.unsaid)}")
    return lines


def list_scrub_lines(scrub: Scrub | None) -> list[str]:
    """What reading every record has found; nothing where nobody asked."""
    if scrub is None:
        return []
    lines = []
    if scrub.num_records:
        held = f"{count_noun(scrub.num_records, 'record')} of {count_noun(scrub.num_files, 'file')}"
        held += f", {format_bytes(scrub.num_bytes)}"
        found = f"{scrub.num_damaged:,} damaged" if scrub.num_damaged else "as written"
        lines.append(f"{held}: {found}")
    if scrub.unsaid:
        lines.append(f"not checked: {_describe_unsaid(scrub.unsaid)}")
    return lines


def _describe_unsaid(paths: list[str]) -> str:
    return f"{count_noun(len(paths), 'file')} {'has' if len(paths) == 1 else 'have'} no checksums"


def make_crc_json(found: CrcCheck | Scrub | None) -> dict[str, Any] | None:
    """The same as JSON."""
    if found is None:
        return None
    return {key.removeprefix("num_"): value for key, value in asdict(found).items()}
