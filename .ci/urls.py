"""What a release says of where it comes from, called with an address and a tag.

Nothing in the repository says where it is kept; the workflow that releases it knows. Into
pyproject.toml go the project's addresses, into README.md, which is the package's page, links to the
files of the tag.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")


def add_urls(pyproject: str, address: str, tag: str) -> str:
    """The text of pyproject.toml with ``[project.urls]``; ValueError where it has one."""
    if "[project.urls]" in pyproject:
        raise ValueError("pyproject.toml has [project.urls] already")
    files = f"{address}/blob/{tag}"
    table = (
        "[project.urls]\n"
        f'Repository = "{address}"\n'
        f'Documentation = "{files}/README.md"\n'
        f'Changelog = "{files}/CHANGELOG.md"\n'
        f'Issues = "{address}/issues"\n\n'
    )
    before, scripts, after = pyproject.partition("[project.scripts]")
    if not scripts:
        raise ValueError("pyproject.toml has no [project.scripts] to put [project.urls] before")
    return before + table + scripts + after


def link_files(readme: str, address: str, tag: str) -> str:
    """README.md with its links to files of the repository as addresses."""
    return _LINK.sub(rf"]({address}/blob/{tag}/\1)", readme)


def main(address: str, tag: str) -> None:
    """Write both files anew."""
    for name, change in (("pyproject.toml", add_urls), ("README.md", link_files)):
        path = ROOT / name
        path.write_text(change(path.read_text(), address, tag))


if __name__ == "__main__":
    main(*sys.argv[1:])
