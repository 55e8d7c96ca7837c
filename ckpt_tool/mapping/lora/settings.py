"""What the numbers of LoRA adapters mean: alpha, and what else a checkpoint says beside them.

``lora_train_meta.json`` of verl 0.8 on: ``{"r", "lora_alpha", "task_type"}``. Else
``adapter_config.json`` of peft, which verl 0.4 to 0.7 leaves in ``lora_adapter/``. Where there is
neither, ``args.json`` of ms-swift, which calls the rank ``lora_rank``. Patterns
(``rank_pattern``, ``alpha_pattern``) are regular expressions that match a whole module name, or
its end from a dot on; the first that does counts (``peft.utils.other.get_pattern_key``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.links import has_file
from ckpt_tool.common.untrusted import Fields, read_json_object
from ckpt_tool.mapping.lora.checked import refuse_other_methods, require_types
from ckpt_tool.mapping.lora.patterns import compile_pattern

META = "lora_train_meta.json"
CONFIG = "adapter_config.json"
ARGS = "args.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """``alpha`` and ``rank`` for all modules that no pattern is about; ``source``: of alpha.

    ``rank`` is None where nothing says it. ``config``: all of ``adapter_config.json``, if found, as
    :func:`~ckpt_tool.mapping.lora.checked.require_types` lets it be.
    """

    alpha: float
    source: str
    rank: int | None = None
    task_type: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float:
        """What B @ A is multiplied with: alpha / r, with rsLoRA alpha / sqrt(r)."""
        alpha = float(_match(self.config.get("alpha_pattern"), module, self.alpha))
        return alpha / sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def expected_rank(self, module: str) -> int | None:
        """The rank that ``module`` should have; None where nothing says it."""
        found = _match(self.config.get("rank_pattern"), module, self.rank)
        return None if found is None else int(found)

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether weights are said to be [in, out]."""
        return bool(self.config.get("fan_in_fan_out"))

    @property
    def parameters(self) -> list[str]:
        """What of the model's parameters was trained as such, each a name or the end of one."""
        return list(self.config.get("target_parameters") or ())

    def targets(self, parameter: str) -> bool:
        """Whether a parameter is one of these."""
        return any(ends_with(parameter, end) for end in self.parameters)

    def token_rows(self, module: str) -> list[int] | None:
        """The rows of an embedding that were trained; None where nothing says it.

        A head that is tied to an embedding has its rows.
        """
        said = self.config.get("trainable_token_indices")
        if not isinstance(said, dict):
            return list(said) if said else None
        found = [rows for end, rows in said.items() if ends_with(module, end)]
        if not found and len(said) == 1:
            found = list(said.values())
        return list(found[0]) if found else None

    def names_rows(self, module: str, is_head: bool) -> bool:
        """Whether rows of ``module`` itself are meant, which without a name are an embedding's."""
        said = self.config.get("trainable_token_indices")
        if isinstance(said, dict):
            return any(ends_with(module, end) for end in said)
        return not is_head

    def is_before(self, major: int, minor: int) -> bool | None:
        """Whether an older release of peft wrote this; None where nothing says which did.

        0.18 is the first to say so itself.
        """
        if not self.config:
            return None
        numbers = re.findall(r"\d{1,9}", str(self.config.get("peft_version") or "0.17"))
        return tuple(map(int, numbers[:2])) < (major, minor)


def read_settings(
    folders: Sequence[Path], alpha: float | None, named: Sequence[Path] = ()
) -> Settings:
    """What the files in ``folders`` say; ``alpha`` is for where they do not say it.

    ``named``: what the user named, by default these folders; CheckpointError for a link out of it.
    UsageError where nothing does, or where two say something else; FormatError for a damaged file.
    """
    named = named or folders
    meta, meta_path = _read_first(folders, named, META)
    config, config_path = _read_first(folders, named, f"lora_adapter/{CONFIG}", CONFIG)
    if meta_path is None and config_path is None:
        config, config_path = _read_args(folders, named)
    files = ((meta, meta_path), (config, config_path))
    told = [Fields(found, path) for found, path in files if path is not None]
    for fields in told:
        require_types(fields)
    refuse_other_methods(config, config_path)
    known = [
        (number, Path(fields.path))
        for fields in told
        if (number := fields.find_number("lora_alpha"))
    ]
    if alpha is not None:
        known.append((alpha, Path("`lora.alpha`")))
    if not known:
        _refuse_unknown_alpha(folders, [path for path in (meta_path, config_path) if path])
    if len({value for value, _ in known}) > 1:
        said = ", ".join(f"{value:g} by {path}" for value, path in known)
        raise UsageError(f"LoRA: alpha is {said}", hint="Say which is right by removing the other.")
    rank = next((found for fields in told if (found := fields.find_size("r"))), None)
    return Settings(
        alpha=known[0][0],
        source=known[0][1].name,
        rank=rank,
        task_type=_read_task_type(meta.get("task_type") or config.get("task_type")),
        config=config,
    )


def _read_args(
    folders: Sequence[Path], named: Sequence[Path]
) -> tuple[dict[str, Any], Path | None]:
    """What ms-swift's arguments say of adapters, by peft's names; nothing where they do not."""
    above = [folder.parent for folder in folders if folder.name.startswith("iter_")]
    found, path = _read_first((*folders, *above), named, ARGS)
    if "lora_rank" not in found or "lora_alpha" not in found:
        return {}, None
    said = {key: value for key, value in found.items() if key in ("lora_alpha", "use_rslora")}
    return said | {"r": found["lora_rank"]}, path


def _refuse_unknown_alpha(folders: Sequence[Path], found: Sequence[Path]) -> NoReturn:
    where = f"neither {META} nor lora_adapter/{CONFIG} in {', '.join(map(str, folders))}"
    if found:
        said = "says nothing of alpha, or 0, which would fuse nothing"
        where = f"{', '.join(map(str, found))}: {said}"
    raise UsageError(
        f"LoRA: alpha is unknown: {where}",
        hint="It is a setting of the run (verl: lora_alpha): give it with `lora.alpha=X`.",
    )


def _read_first(
    folders: Iterable[Path], named: Sequence[Path], *names: str
) -> tuple[dict[str, Any], Path | None]:
    """The first of these files there is, as an object; an empty one where there is none."""
    for path in (folder / name for name in names for folder in folders):
        if has_file(path, named):
            return read_json_object(path), path
    return {}, None


def _match(patterns: Mapping[str, T] | None, module: str, default: T) -> T:
    for pattern, value in (patterns or {}).items():
        if compile_pattern(pattern).matches_end(module):
            return value
    return default


def ends_with(name: str, end: str) -> bool:
    """Whether a dotted name is ``end``, or ends with its parts."""
    return f".{name}".endswith(f".{end}")


def _read_task_type(named: object) -> str | None:
    return str(named).removeprefix("TaskType.") if named else None
