"""The picture of the README shows what the program says. `make docs` draws it anew."""

import html
import io
import os
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.documents.consoles import PROJECT, WIDTH, Command, normalise, run
from tests.documents.scenes import SCENES, Cases

PICTURE = PROJECT / ".github" / "pictures" / "ckpt.svg"
STEP = "qwen-grpo/global_step_100/actor"
COMMANDS = (
    "ckpt inspect qwen-grpo",
    f"ckpt merge {STEP} model --verify",
    f"ckpt verify {STEP} model",
)


def draw(folder: Path) -> str:
    """A terminal with the commands and what they say, as SVG."""
    console = Console(record=True, file=io.StringIO(), width=WIDTH + 6, force_terminal=True)
    for typed in COMMANDS:
        console.print(Text.assemble(("$ ", "bold green"), (typed, "bold")))
        said = run(Command(typed, ""), folder, colours=True)
        console.print(Text.from_ansi(said.rstrip("\n")))
        console.print()
    # Without the fonts that it would fetch from elsewhere.
    return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="ckpt"), flags=re.S)


def read_lines(picture: str) -> str:
    """What one reads in a picture: its pieces by their heights, from left to right."""
    pieces = re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', picture)
    rows: dict[float, dict[float, str]] = {}
    for x, y, text in pieces:
        rows.setdefault(float(y), {})[float(x)] = html.unescape(text).replace("\xa0", " ")
    return "\n".join("".join(row[x] for x in sorted(row)) for _, row in sorted(rows.items()))


def test_the_picture_is_of_this_program(folder: Path, checkpoints, megatron_cases) -> None:
    SCENES["run"](folder, Cases(checkpoints, megatron_cases))
    drawn = draw(folder)
    assert "bit for bit" in read_lines(drawn)
    if os.environ.get("REWRITE_DOCS"):
        if not PICTURE.exists() or _say(PICTURE.read_text()) != _say(drawn):
            PICTURE.parent.mkdir(exist_ok=True)
            PICTURE.write_text(drawn)
        return
    assert _say(PICTURE.read_text()) == _say(drawn)


def _say(picture: str) -> str:
    return normalise(read_lines(picture))
