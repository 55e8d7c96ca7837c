"""Every console block of every page is run. `make docs` writes them anew.

Blocks without a scene are lines for a shell: of programs that a test elsewhere runs.
"""

import os
import re
from itertools import groupby
from pathlib import Path

import pytest

from tests.documents.consoles import (
    PAGES,
    PROJECT,
    Block,
    list_blocks,
    normalise,
    rewrite,
    run,
)
from tests.documents.scenes import SCENES, Cases

BLOCKS = [block for page in PAGES for block in list_blocks(page)]
PLACES = sorted({(str(block.page.relative_to(PROJECT)), block.scene) for block in BLOCKS})
#: Lines that begin so are no lines for us; what they run has tests of its own.
OTHERS = (
    "make ",
    "pip install",
    "torchrun ",
    "sbatch ",
    "git clone",
    "cd ",
    "ckpt --show-completion ",
)
REWRITE = bool(os.environ.get("REWRITE_DOCS"))


@pytest.mark.parametrize(("page", "scene"), [place for place in PLACES if place[1]])
def test_a_page_shows_what_the_program_says(
    checkpoints, megatron_cases, folder: Path, page: str, scene: str
) -> None:
    SCENES[scene](folder, Cases(checkpoints, megatron_cases))
    blocks = [b for b in BLOCKS if (b.page, b.scene) == (PROJECT / page, scene)]
    found = [[run(command, folder) for command in block.commands] for block in blocks]
    if REWRITE:
        for block, said in reversed([*zip(_read_again(blocks), found, strict=True)]):
            rewrite(block, said)
        return
    for block, said in zip(blocks, found, strict=True):
        for command, now in zip(block.commands, said, strict=True):
            assert normalise(command.said) == normalise(now), f"{page}: $ {command.typed}"


def _read_again(blocks: list[Block]) -> list[Block]:
    """The same blocks where they are now: others of the page may have been written anew."""
    page, scene = blocks[0].page, blocks[0].scene
    return [block for block in list_blocks(page) if block.scene == scene]


def test_every_scene_is_used() -> None:
    assert {scene for _, scene in PLACES if scene} == SCENES.keys()


def test_blocks_without_a_scene_are_for_other_programs() -> None:
    lines = [c for block in BLOCKS if not block.scene for c in block.commands]
    assert lines
    for command in lines:
        assert command.typed.startswith(OTHERS), command.typed
        assert not command.said.strip(), command.typed
    targets = {c.words[1] for c in lines if c.words[0] == "make"}
    known = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.M)
    assert targets <= set(known)


def test_no_page_has_a_console_that_is_not_seen() -> None:
    for page, blocks in groupby(BLOCKS, lambda block: block.page):
        assert page.read_text().count("```console") == len(list(blocks)), page
    seen = {block.page for block in BLOCKS}
    assert all("```console" not in page.read_text() for page in PAGES if page not in seen)
