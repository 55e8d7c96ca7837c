"""What a release is made of: all of the repository, and addresses that hold."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE, TAG = "https://git.example.org/lab/ckpt-tool", "v1.2.3"
_SPEC = importlib.util.spec_from_file_location("urls", ROOT / ".ci" / "urls.py")
assert _SPEC is not None
assert _SPEC.loader is not None
urls = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(urls)

BUILD = "import sys; from hatchling.build import build_{0}; build_{0}(sys.argv[1])"


def list_tracked() -> list[str]:
    """Every file of the repository; nothing outside of a checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name for name in found.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.slow
def test_the_sdist_is_the_repository_and_the_wheel_the_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="it builds them")
    tracked = list_tracked()
    if not tracked:
        pytest.skip("this is no checkout of Git")
    for name in tracked:
        target = tmp_path / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    built = tmp_path / "dist"
    built.mkdir()
    for kind in ("sdist", "wheel"):
        command = [sys.executable, "-c", BUILD.format(kind), str(built)]
        subprocess.run(command, cwd=tmp_path / "tree", check=True, capture_output=True)
    (archive,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(archive) as held:
        names = {m.name.partition("/")[2] for m in held.getmembers() if m.isfile()}
    assert names == {*tracked, "PKG-INFO"}
    with zipfile.ZipFile(wheel) as held:
        inside = {name for name in held.namelist() if ".dist-info/" not in name}
    package = {name for name in tracked if name.startswith("ckpt_tool/")}
    assert inside == {name for name in package if not name.endswith(".md")}


def test_the_package_says_where_it_comes_from() -> None:
    tomllib = pytest.importorskip("tomllib")
    before = (ROOT / "pyproject.toml").read_text()
    after = urls.add_urls(before, SITE, TAG)
    expected, found = tomllib.loads(before), tomllib.loads(after)
    links = found["project"].pop("urls")
    assert found == expected
    assert set(links) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert links["Changelog"] == f"{SITE}/blob/{TAG}/CHANGELOG.md"
    with pytest.raises(ValueError, match="already"):
        urls.add_urls(after, SITE, TAG)


def test_links_of_the_package_s_page_lead_to_files_that_are_there() -> None:
    before = (ROOT / "README.md").read_text()
    after = urls.link_files(before, SITE, TAG)
    links = re.findall(r"\]\(([^)\s]+)\)", after)
    assert len(links) > 5
    assert all(link.startswith(("https://", "http://", "#")) for link in links)
    inside = [link for link in links if link.startswith(SITE)]
    assert len(inside) > 5
    for link in inside:
        path = link.removeprefix(f"{SITE}/blob/{TAG}/").partition("#")[0]
        assert (ROOT / path).exists(), link
    assert urls.link_files(after, SITE, TAG) == after


def test_workflows_run_what_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        ran = set(re.findall(r"make (?:--silent )?([a-z-]+)", workflow.read_text()))
        assert ran <= targets
        assert ran
