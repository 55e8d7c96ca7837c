"""Other people's programs that make one model of a sharded checkpoint, each as a process.

``python -m tests.bench.peers NAME IN OUT`` runs one as its documentation says. verl has an
environment of its own, made by pip where it is not there yet: its wheel, what that imports, and the
torch and transformers that are installed here. It is no dependency of anything.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.bench.write_sharded import DCP, FSDP, SHARDS

#: The release that is measured. It asks for a Python below 3.13, and runs in later ones.
_VERL = "verl==0.9.1"
_VERL_IMPORTS = (
    "tensordict<=0.10", "ray", "codetiming", "hydra-core", "pylatexenc", "pandas", "pyarrow", "dill"
)  # fmt: skip
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def _torch_consolidate(checkpoint: str, out: str) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint._consolidate_hf_safetensors import (
        consolidate_safetensors_files,
    )

    names = HuggingFaceStorageReader(checkpoint).read_metadata().state_dict_metadata
    Path(out).mkdir()
    threads = len(os.sched_getaffinity(0))
    consolidate_safetensors_files(checkpoint, out, dict.fromkeys(names, 1), num_threads=threads)


def _transformers_consolidate(checkpoint: str, out: str) -> None:
    from transformers.distributed import consolidate_distributed_checkpoint

    consolidate_distributed_checkpoint(checkpoint, out)


def _accelerate_merge(checkpoint: str, out: str) -> None:
    from accelerate.utils import merge_fsdp_weights

    merge_fsdp_weights(checkpoint, out)


def _torch_save(checkpoint: str, out: str) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(checkpoint, out)


_CALLS: dict[str, Callable[[str, str], None]] = {
    "consolidate": _torch_consolidate,
    "transformers": _transformers_consolidate,
    "accelerate": _accelerate_merge,
    "torch-save": _torch_save,
}


@dataclass(frozen=True)
class Peer:
    """``kind`` of checkpoint it reads; ``argv`` but for checkpoint and result.

    ``missing``: why it is not there. ``flags`` come before both.
    """

    label: str
    kind: str
    argv: tuple[str, ...]
    flags: tuple[str, str] = ("", "")
    missing: str = ""

    def command(self, checkpoint: Path, out: Path) -> tuple[str, ...]:
        """What is run."""
        pairs = zip(self.flags, (str(checkpoint), str(out)), strict=True)
        return (*self.argv, *(word for pair in pairs for word in pair if word))


def list_peers(verl_folder: Path) -> list[Peer]:
    """All of them; ``verl_folder``: where verl's environment is, or is made."""
    torch, hub = f"torch {version('torch')}", f"transformers {version('transformers')}"
    return [
        _verl(verl_folder),
        _here("accelerate", DCP, f"accelerate {version('accelerate')} merge-weights",
              "accelerate.utils", "merge_fsdp_weights"),
        _here("torch-save", DCP, f"{torch} dcp_to_torch_save",
              "torch.distributed.checkpoint.format_utils", "dcp_to_torch_save"),
        _here("consolidate", SHARDS, f"{torch} consolidate_safetensors_files",
              "torch.distributed.checkpoint._consolidate_hf_safetensors",
              "consolidate_safetensors_files"),
        _here("transformers", SHARDS, f"{hub} consolidate_distributed_checkpoint",
              "transformers.distributed", "consolidate_distributed_checkpoint"),
    ]  # fmt: skip


def _here(name: str, kind: str, label: str, module: str, function: str) -> Peer:
    """A function of an installed library, where this release of it has that."""
    try:
        missing = "" if hasattr(importlib.import_module(module), function) else f"no {function}"
    except ImportError as error:
        missing = str(error)
    argv = (sys.executable, "-W", "ignore", "-m", __name__, name)
    return Peer(label, kind, argv, missing=missing)


def _verl(folder: Path) -> Peer:
    python = str(folder.absolute() / "bin" / "python")
    argv = (python, "-W", "ignore", "-m", "verl.model_merger", "merge", "--backend", "fsdp")
    flags = "--local_dir", "--target_dir"
    label = f"{_VERL.replace('==', ' ')} model_merger"
    try:
        if not (folder / ".installed").exists():
            _install_verl(folder, python)
        _run(python, "-c", "import verl.model_merger.__main__")
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return Peer(label, FSDP, argv, flags, missing=said[-1][:200] if said else repr(error))
    return Peer(label, FSDP, argv, flags)


def _install_verl(folder: Path, python: str) -> None:
    """An environment that sees what is installed here, so that torch is not fetched once more."""
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    places = _run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    here = sysconfig.get_paths()["purelib"]
    (Path(places.strip()) / "installed_here.pth").write_text(f"{here}\n")
    _run(python, *_PIP, "--no-deps", "--ignore-requires-python", _VERL)
    _run(python, *_PIP, *_VERL_IMPORTS)
    (folder / ".installed").touch()


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    _CALLS[sys.argv[1]](*sys.argv[2:])
