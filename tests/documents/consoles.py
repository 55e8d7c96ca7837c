"""Console blocks of the pages for users: what one types, and what the program then says.

Above a block stands where it is run, one of :mod:`tests.documents.scenes`: `<!-- scene: qwen3 -->`.
Blocks of one page and scene are run one after the other, in one folder. Numbers of seconds and of
the disk, and versions, are not held against the page.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in (
        "README.md",
        "CHANGELOG.md",
        "ckpt_tool/**/*.md",
        ".github/*.md",
        "tests/**/*.md",
    )
    for path in PROJECT.glob(pattern)
)
#: The folder that pages show in place of a scene's.
SHOWN = "/data"
WIDTH = 92

_BLOCK = re.compile(r"^(?:<!-- scene: (\w+) -->\n)?```console\n(.*?)^```$", re.M | re.S)
_VARIES = (
    (re.compile(r"\d[\d.,]* s, writing at [\d.,]+ [kMGT]?B/s"), "N s, writing at N B/s"),
    (re.compile(r"(transformers|megatron-core|ckpt-tool|torch) \d+(\.\w+)+"), r"\1 N"),
    (re.compile(r"([kMGT]?B) +\d+\.\d *$", re.M), r"\1 N s"),
    (re.compile(r" +$", re.M), ""),
)


@dataclass(frozen=True)
class Command:
    """One line that is typed, without its ``$``, and what comes of it."""

    typed: str
    said: str

    @property
    def words(self) -> list[str]:
        """The words of it; what stands behind `#` is for people."""
        return shlex.split(self.typed, comments=True)


@dataclass(frozen=True)
class Block:
    """A console block: ``start`` and ``end`` of its text in the page; ``scene``, empty: none."""

    page: Path
    scene: str
    start: int
    end: int
    commands: tuple[Command, ...]


def list_blocks(page: Path) -> list[Block]:
    """The console blocks of a page."""
    return [
        Block(page, found[1] or "", *found.span(2), tuple(_split(found[2])))
        for found in _BLOCK.finditer(page.read_text())
    ]


def _split(text: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        typed, _, said = part.partition("\n")
        yield Command(typed, said)


def run(command: Command, folder: Path, *, colours: bool = False) -> str:
    """What the program says in ``folder``: its result, or the error that it ends with."""
    program = [sys.executable, "-m", "ckpt_tool", *command.words[1:]]
    style = {"FORCE_COLOR": "1"} if colours else {"NO_COLOR": "1"}
    done = subprocess.run(
        program,
        cwd=folder,
        env=os.environ
        | {"COLUMNS": str(WIDTH), "PYTHONPATH": str(PROJECT), "HF_HUB_OFFLINE": "1"}
        | style,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1, 2), done.stderr
    said = done.stderr if done.returncode == 2 else done.stdout
    return said.replace(str(folder), SHOWN)


def normalise(text: str) -> str:
    """The text without what is another in each run."""
    for pattern, put in _VARIES:
        text = pattern.sub(put, text)
    return text.strip("\n")


def rewrite(block: Block, said: Sequence[str]) -> None:
    """Put what the program says now into the page, at a block whose place is as it was read.

    What is the same but for times and versions stays.
    """
    body = ""
    for command, now in zip(block.commands, said, strict=True):
        kept = command.said if normalise(command.said) == normalise(now) else now
        lines = (line.rstrip() for line in kept.splitlines())
        body += "".join(f"{line}\n" for line in (f"$ {command.typed}", *lines))
    text = block.page.read_text()
    block.page.write_text(text[: block.start] + body + text[block.end :])
