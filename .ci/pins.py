"""Prints the pins of everything that `make` installs on one Python: `make pins` writes them all.

    python .ci/pins.py python3.13 dev                  the newest versions, but for .ci/held.txt
    python .ci/pins.py python3.10 test --oldest        the oldest that pyproject.toml allows

Nothing is installed: pip only says what it would choose. Needs Python 3.11.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
HELD = ROOT / ".ci" / "held.txt"

#: Chosen by torch itself, one version for each of its own, and only where it is built for a GPU.
_OF_TORCH = re.compile(r"(nvidia|cuda)-|triton$")


def main() -> None:
    """Print the pins, sorted."""
    parser = argparse.ArgumentParser(description="Print the pins for one Python.")
    parser.add_argument("python", help="the Python to choose for")
    parser.add_argument("extra", help="the extra of pyproject.toml that is installed")
    parser.add_argument("--oldest", action="store_true", help="what pyproject.toml starts at")
    arguments = parser.parse_args()
    given = oldest(arguments.extra) if arguments.oldest else HELD.read_text().splitlines()
    chosen = choose(arguments.python, arguments.extra, given)
    print(f"# By `make pins`. {_title(arguments.oldest)}")
    print("\n".join(f"{name}=={version}" for name, version in chosen))


def _title(is_oldest: bool) -> str:
    if is_oldest:
        return "What `make test-oldest` installs: the versions that pyproject.toml starts at."
    return "What `make` installs, so that every machine tests the same."


def oldest(extra: str) -> list[str]:
    """The lower bounds of pyproject.toml, as constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"][extra]
    return [requirement.replace(">=", "==", 1) for requirement in wanted]


def choose(python: str, extra: str, given: list[str]) -> list[tuple[str, str]]:
    """Every package that pip would install, with its version: without a build's name (`+cpu`)."""
    with tempfile.TemporaryDirectory() as scratch:
        report, constraints = Path(scratch, "report.json"), Path(scratch, "constraints.txt")
        constraints.write_text("\n".join(given))
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        options += ["--constraint", str(constraints), f"{ROOT}[{extra}]"]
        done = subprocess.run([python, "-m", "pip", "install", *options], check=False)
        if done.returncode:
            sys.exit(done.returncode)
        found = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    pins = {entry["name"]: entry["version"].partition("+")[0] for entry in found}
    kept = (name for name in pins if not _OF_TORCH.match(name) and name != "ckpt-tool")
    return [(name, pins[name]) for name in sorted(kept, key=str.lower)]


if __name__ == "__main__":
    main()
