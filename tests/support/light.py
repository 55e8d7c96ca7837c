"""The program where packages are missing: in a light installation, or with one hidden."""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What README.md says is enough.
LIGHT = ("typer", "rich", "numpy", "xxhash", "isal")

_HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
sys.argv[0] = "ckpt"
from ckpt_tool.cli.app import main
main()
"""


def run_light(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The program with the packages of ``folder`` only, which :func:`link_packages` has made."""
    paths = os.pathsep.join((str(folder), str(ROOT)))
    return _run(["-S", "-m", "ckpt_tool", *map(str, words)], {"PYTHONPATH": paths})


def run_without(hidden: str, *words: object) -> subprocess.CompletedProcess[str]:
    """The program where the packages in ``hidden``, top-level modules, cannot be imported."""
    script = _HIDE.format(hidden=set(hidden.split()))
    return _run(["-c", script, *map(str, words)], {"PYTHONPATH": str(ROOT)})


def _run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def link_packages(folder: Path) -> Path:
    """A folder with links to :data:`LIGHT`, as installed here, and to all that they need."""
    folder.mkdir()
    waiting, seen = list(LIGHT), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform, or of an extra
            continue
        for top in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (folder / top).symlink_to(found.locate_file(top))
        waiting += [_read_name(each) for each in found.requires or () if "extra ==" not in each]
    return folder


def _read_name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
