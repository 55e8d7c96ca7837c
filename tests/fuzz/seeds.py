"""What is mutated: a folder of a small checkpoint for each target, and what is done with it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.case import Case
from tests.fuzz.mutate_bytes import mutate_bytes
from tests.fuzz.mutate_json import mutate_json, mutate_lines, mutate_safetensors
from tests.fuzz.mutate_pickle import mutate_pickle
from tests.fuzz.mutate_zip import mutate_zip

Mutator = Callable[[bytes, Random], bytes]

#: When every file of a case was changed last: plans have it in their fingerprints.
MTIME = 1_700_000_000
CACHE_KEY = "0" * 64

_CASES = {
    "fsdp": Case("merge", "fsdp"),
    "torch2.4.1_fsdp1_w2": Case("merge", "fsdp", keep_names=True),
    "torch2.9.1_fsdp2_w3": Case("merge", "fsdp", keep_names=True),
    "torch2.6.0_fsdp2_hsdp_w4": Case("merge", "fsdp", keep_names=True),
    "lora": Case("merge", "fsdp"),
    "lora-base": Case("merge", "fsdp", base="base"),
    "dcp": Case("merge", "dcp"),
    "shards": Case("merge", "dcp"),
    "torchtitan0.3_llama3": Case("merge", "dcp", config="config"),
    "mcore0.15_dense": Case("merge", "megatron", config="config"),
    "mcore0.16_moe": Case("merge", "megatron", config="config"),
    "mcore0.19_hybrid": Case("merge", "megatron", config="config"),
    "mcore0.13_optimizer": Case("merge", "megatron", config="config", weights="optimizer"),
    "mcore0.11_ranks": Case("merge", "megatron", config="config"),
    "bridge": Case("merge", "megatron", keep_names=True),
    "deepspeed0.19_z2_excluded": Case("merge", "deepspeed", keep_names=True),
    "deepspeed0.19_z3_frozen": Case("merge", "deepspeed", keep_names=True),
    "deepspeed0.19_universal_z3": Case("merge", "deepspeed", keep_names=True),
    "single": Case("merge", "dcp", config="config"),
    "hub": Case("to-mcore"),
    "packed": Case("to-mcore"),
    "hub-bin": Case("verify"),
    "state": Case("state", "fsdp"),
}
#: How a file is mutated, by the end of its name; the first that fits counts.
_MUTATORS: tuple[tuple[str, Mutator], ...] = (
    (".json", mutate_json),
    ("-journal", mutate_lines),
    (".safetensors", mutate_safetensors),
    (".metadata", mutate_pickle),
    (".pt", mutate_zip),
    (".bin", mutate_zip),
    ("ck", mutate_zip),
    ("", mutate_bytes),
)


@dataclass(frozen=True)
class Target:
    """A folder of files, by relative name, what is done with it, and what of it is mutated."""

    name: str
    case: Case
    files: dict[str, bytes]

    @property
    def every(self) -> int:
        """In which rounds it has its turn: what is large is slow."""
        return 1 if sum(map(len, self.files.values())) < 25_000 else 4

    def mutate(self, seed: str, number: int) -> tuple[str, bytes]:
        """The name of one file and its new content; the same for the same numbers."""
        rng = Random(f"{seed}/{self.name}/{number}")
        name = rng.choice(self._mutable())
        mutator = next(found for end, found in _MUTATORS if name.endswith(end))
        if name.endswith(_CACHED):
            return name, _reseal(self.files[name], mutator, rng)
        return name, mutator(self.files[name], rng)

    def write(self, root: Path) -> None:
        """All files, as they are."""
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        fix_times(root)

    def _mutable(self) -> list[str]:
        """The files to choose from: descriptions twice as often as large ones."""
        names = sorted(name for name in self.files if not self._is_fixed(name))
        return [name for name in names for _ in range(1 if name.endswith(".distcp") else 2)]

    def _is_fixed(self, name: str) -> bool:
        """Weights that are only compared, and what only ``--resume`` looks at."""
        kept = ("out/", "wanted/", "-journal")
        return self.case.action == "state" and not any(each in name for each in kept)


_CACHED = f"{CACHE_KEY}.json"


def _reseal(data: bytes, mutator: Mutator, rng: Random) -> bytes:
    """An entry of the cache with the digest of what it says now."""
    body = mutator(data.partition(b"\n")[2], rng)
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def fix_times(root: Path) -> None:
    """Give every file below ``root`` the same time."""
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (MTIME, MTIME))


def load_targets(folder: Path) -> list[Target]:
    """The targets whose files were written to ``folder``."""
    return [
        Target(name, case, _read_files(folder / name))
        for name, case in _CASES.items()
        if (folder / name).is_dir()
    ]


def write_seeds(folder: Path) -> None:
    """Write the files of all targets, in another process: it imports torch."""
    command = [sys.executable, "-m", "tests.fuzz.write_seeds", str(folder)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


def _read_files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
