"""``config.json`` and the files beside it: what a merge reads of them, and what it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.links import has_file
from ckpt_tool.common.regular import read_regular
from ckpt_tool.common.untrusted import Fields, read_json_object
from ckpt_tool.mapping.families.family import Family
from ckpt_tool.mapping.families.table import find_family
from ckpt_tool.mapping.legacy_config import add_legacy_keys
from ckpt_tool.tensors.dtypes import BY_NAME, DType

#: Classes that wrap a model, and took its place in ``architectures``: of FSDP2 (``FSDP`` and the
#: model's own), of peft, torch.compile, FSDP1 and DDP.
_WRAPPERS = re.compile(
    r"^FSDP(?=[A-Z])|^Peft(Mixed)?Model.*|^OptimizedModule$"
    r"|^(FullyShardedDataParallel|DistributedDataParallel)$"
)

#: How configs call the number of experts.
EXPERT_KEYS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")

#: How they call the number of layers for multi-token prediction.
MTP_KEYS = (
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "num_mtp_layers",
    "mtp_num_layers",
)

#: Where the language model's part is: of most models, of InternVL's own code, of Omni models.
_TEXT_PARTS = (("text_config",), ("llm_config",), ("thinker_config", "text_config"))

_MOST = (1 << 31) - 1
#: The most that a config may say; a hundred times what the largest models do.
_SIZES = {
    **dict.fromkeys(("num_hidden_layers", *MTP_KEYS), 100_000),
    **dict.fromkeys(EXPERT_KEYS, 1_000_000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), _MOST),
    **dict.fromkeys(("hidden_size", "vocab_size"), _MOST),
}


@dataclass(frozen=True)
class ModelConfig:
    """The config of a model: ``raw`` as it was read from ``folder``, ``changes`` to be written.

    ``own_dtypes``: tensors (by their names on the Hub) that keep theirs where the model is cast.
    ``removed``: top-level keys that are not written. ``forms``: those of experts on the Hub, as
    :func:`~ckpt_tool.mapping.megatron.packing.find_forms` has found them in a model's weights.
    """

    folder: Path
    raw: dict[str, Any]
    changes: dict[str, Any]
    own_dtypes: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    forms: frozenset[str] = frozenset()

    @property
    def path(self) -> Path:
        """The file that it was read from."""
        return self.folder / "config.json"

    @property
    def model_type(self) -> str:
        """The family, as transformers names it."""
        return str(self.raw.get("model_type", ""))

    @property
    def family(self) -> Family:
        """What is known of its family; of an unknown one, that nothing is special."""
        return find_family(self.model_type)

    @property
    def text(self) -> dict[str, Any]:
        """The language model's part: ``text_config`` of a multimodal model, else all of it."""
        return self._levels()[-1]

    @property
    def written(self) -> dict[str, Any]:
        """What will be written, but for keys that older libraries read."""
        config = self.raw | self.changes
        return {key: value for key, value in config.items() if key not in self.removed}

    @property
    def said_architecture(self) -> str:
        """The class that is written, wrapped or not; empty where nothing says it."""
        named = self.written.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    @property
    def architecture(self) -> str:
        """The model's class; empty where nothing says it, or a wrapper hides it."""
        return _WRAPPERS.sub("", self.said_architecture)

    @property
    def dtype(self) -> DType | None:
        """The dtype the config asks for, if it says one that is known."""
        for part in (self.raw, self.text):
            named = part.get("dtype") or part.get("torch_dtype")
            if isinstance(named, str):
                return BY_NAME.get(named.removeprefix("torch."))
        return None

    @property
    def tied(self) -> bool | None:
        """Whether head and embedding are one tensor; None where the config does not say."""
        for part in self._levels():
            if isinstance(part.get("tie_word_embeddings"), bool):
                return bool(part["tie_word_embeddings"])
        return True if self.family.tied else None

    @property
    def ties_somewhere(self) -> bool:
        """Whether any level says that head and embedding are one tensor."""
        return any(part.get("tie_word_embeddings") is True for part in self._levels())

    def with_changes(self, **changes: Any) -> ModelConfig:
        """The config with these top-level keys set when written."""
        return replace(self, changes=self.changes | changes)

    def without(self, *keys: str) -> ModelConfig:
        """The config without these top-level keys."""
        return replace(self, removed=self.removed.union(keys))

    def with_text(self, **changes: Any) -> ModelConfig:
        """The config with these keys set where the language model's are."""
        if self.text is self.raw:
            return self.with_changes(**changes)
        return self.with_changes(**self._nest(changes))

    def with_tied(self, tied: bool | None) -> ModelConfig:
        """The config that says whether the head is stored, at every level that is read.

        transformers 4 reads ``text_config``'s value and 5 the top one; llama4 always the former.
        """
        keys = _find_text(self.raw)
        is_said = all(part.get("tie_word_embeddings") is tied for part in self._levels())
        if tied is None or is_said or (len(keys) != 1 and tied == self.tied):
            return self
        whole = self.raw | self.changes
        changes: dict[str, Any] = {"tie_word_embeddings": tied}
        for depth in range(1, len(keys) + 1):
            changes |= _change(whole | changes, keys[:depth], {"tie_word_embeddings": tied})
        return self.with_changes(**changes)

    def with_dtype(self, dtype: DType | None) -> ModelConfig:
        """The config that names the dtype of the weights as written."""
        if dtype is None:
            return self
        written = _set_dtype(self.written, dtype)
        if not isinstance(written.get("dtype", written.get("torch_dtype")), str):
            written["torch_dtype"] = dtype.name
        changed = {key: value for key, value in written.items() if self.raw.get(key) != value}
        return self.with_changes(**changed)

    def to_bytes(self) -> bytes:
        """The ``config.json`` to write: the original's bytes where nothing is to be changed."""
        config = add_legacy_keys(self.written)
        if config == self.raw:
            return read_regular(self.path)
        return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def _levels(self) -> list[dict[str, Any]]:
        """The parts of the config from the whole to the language model's."""
        levels = [self.raw]
        for key in _find_text(self.raw):
            levels.append(levels[-1][key])
        return levels

    def _nest(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The top-level key below which the language model's are, with ``changes`` of these."""
        return _change(self.raw | self.changes, _find_text(self.raw), changes)


def _find_text(config: dict[str, Any]) -> tuple[str, ...]:
    """The keys that lead to the language model's part; none where it is all of the config."""
    for keys in _TEXT_PARTS:
        part: Any = config
        for key in keys:
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict):
            return keys
    return ()


def _change(part: dict[str, Any], keys: Sequence[str], changes: dict[str, Any]) -> dict[str, Any]:
    """The first of ``keys`` and what it has, where ``changes`` are made below the last one."""
    first, *rest = keys
    inner = part.get(first)
    inner = inner if isinstance(inner, dict) else {}
    return {first: inner | (_change(inner, rest, changes) if rest else changes)}


def load_config(folder: Path, named: Sequence[Path] = ()) -> ModelConfig:
    """Read ``folder/config.json``; UsageError where there is none, FormatError if damaged.

    ``named``: what the user named, by default this folder; CheckpointError for a link out of it,
    and for what is no file.
    """
    path = folder / "config.json"
    if not has_file(path, named or [folder]):
        raise UsageError(f"{path}: no such file", hint=_guess_folder(folder))
    raw = read_json_object(path)
    _refuse_absurd(raw, path)
    return ModelConfig(folder, raw, {})


def _guess_folder(folder: Path) -> str:
    """What may have been meant: the file named, a repository of the Hub's cache."""
    if folder.name == "config.json" and folder.is_file():
        return f"`config` names a folder with config.json: {folder.parent}"
    kept = sorted(folder.glob("snapshots/*/config.json"))
    found = f": {' or '.join(str(path.parent) for path in kept[:3])}" if kept else "."
    return f"`config` names a folder with config.json{found}"


def _refuse_absurd(config: dict[str, Any], path: Path) -> None:
    """FormatError for a size, at any level, that no model has: something would count up to it.

    Some families say them by lists and objects, which stay: who counts asks for a number.
    """
    fields = Fields(config, path)
    for key, most in _SIZES.items():
        if isinstance(config.get(key), (int, float)):
            fields.find_size(key, most)
    for key, part in config.items():
        if key.endswith("_config") and isinstance(part, dict):
            _refuse_absurd(part, path)


def _set_dtype(part: dict[str, Any], dtype: DType) -> dict[str, Any]:
    """A config that names ``dtype`` wherever it names one, in nested configs too."""
    result = {
        key: _set_dtype(value, dtype)
        if key.endswith("_config") and isinstance(value, dict)
        else value
        for key, value in part.items()
    }
    named = [key for key in ("dtype", "torch_dtype") if isinstance(result.get(key), str)]
    return result | dict.fromkeys(named, dtype.name)
