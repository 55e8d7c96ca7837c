"""``ORG/NAME`` in the place of a folder: a repository of the Hugging Face Hub.

Config and tokenizer are looked up in the Hub's cache on this machine, and fetched where they are
not there; weights are looked up, and never fetched. huggingface_hub is imported when it is asked.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.packages import require_packages
from ckpt_tool.common.remote.shadow import reach
from ckpt_tool.common.version import __version__
from ckpt_tool.mapping.side_files import list_tokenizer
from ckpt_tool.operations.hub_client import show_bars
from ckpt_tool.operations.options import MergeOptions, ModelOptions, ToMcoreOptions

_Options = TypeVar("_Options", bound=ModelOptions | ToMcoreOptions)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: What lies beside weights, and is small. Indices are of weights, which stay where they are.
_BESIDE = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
_OF_WEIGHTS = ["*.index.json", "*onnx*"]


def settle_repositories(options: _Options) -> _Options:
    """The options with a folder for each repository that they name.

    UsageError where one is neither here nor to be had.
    """
    changes: dict[str, Any] = {}
    if options.config is not None:
        said = f"`config={str(options.config)!r}`"
        changes["config"] = _settle_small(options.config, said)
    if isinstance(options, MergeOptions) and options.tokenizer is not None:
        said = f"`tokenizer={str(options.tokenizer)!r}`"
        changes["tokenizer"] = _settle_small(options.tokenizer, said, is_tokenizer=True)
    if isinstance(options, ModelOptions) and options.lora.base is not None:
        said = f"`lora.base={str(options.lora.base)!r}`"
        base = _settle_weights(options.lora.base, said)
        changes["lora"] = replace(options.lora, base=base)
    if isinstance(options, ModelOptions) and options.fill_from is not None:
        said = f"`fill_from={str(options.fill_from)!r}`"
        changes["fill_from"] = _settle_weights(options.fill_from, said)
    return replace(options, **changes)


def _find_repository(asked: str | Path) -> str | None:
    """The repository that is meant; None where ``asked`` is a folder, or cannot be a name."""
    named = str(asked)
    return named if _REPOSITORY.fullmatch(named) and not Path(named).exists() else None


def _settle_small(asked: str | Path, said: str, *, is_tokenizer: bool = False) -> Path:
    """A folder with config and tokenizer; ``said``: which option asks, for what is wrong."""
    repository = _find_repository(asked)
    if repository is None:
        return reach(asked)
    _require_hub(said)
    known = _find_snapshot(repository)
    if known is not None and (known / "config.json").is_file() and list_tokenizer(known):
        return known
    try:
        return _fetch(repository)
    except Exception as error:  # of whatever this version of huggingface_hub is built on
        if known is not None and _has_part(known, is_tokenizer=is_tokenizer):
            return known
        raise _explain(repository, said, error) from error


def _has_part(folder: Path, *, is_tokenizer: bool) -> bool:
    """Whether what is asked for is there, if not all that may be in the repository."""
    return bool(list_tokenizer(folder)) if is_tokenizer else (folder / "config.json").is_file()


def _settle_weights(asked: str | Path, said: str) -> Path:
    repository = _find_repository(asked)
    if repository is None:
        return reach(asked)
    _require_hub(said)
    known = _find_snapshot(repository)
    if known is None:
        raise UsageError(
            f"{said}: no such folder, and not in the Hub's cache on this machine; weights are"
            " never fetched",
            hint=f"Fetch it yourself: hf download {repository}",
        )
    return known


def _require_hub(said: str) -> None:
    """UsageError where nobody can look into the Hub's cache, or ask the Hub."""
    require_packages(f"{said}: no such folder, and looking on the Hub", ["huggingface_hub"])


def _find_snapshot(repository: str) -> Path | None:
    """The folder of the cache in which the newest state of a repository lies that was fetched."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    reference = place / "refs" / "main"
    if not reference.is_file():
        return None
    snapshot = place / "snapshots" / reference.read_text(encoding="utf-8").strip()
    return snapshot if snapshot.is_dir() else None


def _fetch(repository: str) -> Path:
    """The folder of the cache with all small files of a repository; what they raise is theirs."""
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise UsageError("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set")
    with show_bars(wanted=False):
        folder = snapshot_download(
            repository,
            allow_patterns=_BESIDE,
            ignore_patterns=_OF_WEIGHTS,
            library_name="ckpt-tool",
            library_version=__version__,
        )
    return Path(folder)


def _explain(repository: str, said: str, error: Any) -> UsageError:
    cause = error
    while (below := cause.__cause__ or cause.__context__) is not None:
        cause = below
    why = " ".join(str(cause).split()) or type(cause).__name__
    return UsageError(
        f"{said}: no such folder, not in the Hub's cache on this machine, and not to be had from"
        f" the Hub: {why:.300}",
        hint=f"Name a folder, or fetch it where there is a network: hf download {repository}"
        " --include '*.json' '*.txt' '*.model' '*.jinja'",
    )
