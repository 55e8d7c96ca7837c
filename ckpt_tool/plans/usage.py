"""What a written model folder is opened with: told to people, and to the Hub by its card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from ckpt_tool.mapping.casting import find_main_dtype
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.lora.options import AdapterFiles

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: The folder of a repository in the Hub's cache: ``models--ORG--NAME/snapshots/<commit>``.
_CACHED = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)")
#: How classes end that an ``Auto`` class of the same end opens.
_AUTO = ("ForCausalLM", "ForTokenClassification", "ForSequenceClassification")
_GENERATES = ("ForCausalLM", "ForConditionalGeneration")


@dataclass(frozen=True)
class Usage:
    """Who opens a folder.

    ``library``: ``transformers``, or ``peft`` for adapters alone. ``architecture``: the class in
    its config; ``opener``: the class of transformers to ask, of the base for adapters. ``dtype``:
    of most of its bytes. ``base_model``: the repository of the Hub that it was trained from, as
    settings beside it say; empty each where nothing says it. ``has_tokenizer``, ``needs_code``:
    what lies beside the weights, and whether the class is Python code that does.
    ``is_generative``: whether a server that writes text takes it. ``adapter``: the folder below for
    peft; None where there is none.
    """

    library: str
    architecture: str
    opener: str
    dtype: str
    base_model: str = ""
    has_tokenizer: bool = False
    needs_code: bool = False
    is_generative: bool = False
    adapter: str | None = None


def use_model(
    config: ModelConfig, dtype: str, *, has_tokenizer: bool, adapter: AdapterFiles | None
) -> Usage:
    """Of a model with a config, with its adapter beside it where there is one."""
    named = config.said_architecture
    known = named if _NAME.fullmatch(named) else ""
    of_auto = next((f"AutoModel{end}" for end in _AUTO if known.endswith(end)), "")
    needs_code = isinstance(config.written.get("auto_map"), dict)
    decodes = not config.written.get("is_encoder_decoder")
    return Usage(
        library="transformers",
        architecture=known,
        opener=of_auto or ("AutoModel" if needs_code or not known else known),
        dtype=dtype,
        base_model=name_repository(config.raw.get("_name_or_path")) or _find_base(adapter),
        has_tokenizer=has_tokenizer,
        needs_code=needs_code,
        is_generative=decodes and known.endswith(_GENERATES),
        adapter=None if adapter is None else adapter.folder,
    )


def use_adapter(adapter: AdapterFiles) -> Usage:
    """Of adapters alone."""
    dtype = find_main_dtype(adapter.tensors.values())
    return Usage(
        library="peft",
        architecture="",
        opener="AutoModelForCausalLM",
        dtype="" if dtype is None else dtype.name,
        base_model=_find_base(adapter),
        adapter="",
    )


def _find_base(adapter: AdapterFiles | None) -> str:
    """What an adapter's settings call its base, if that is a repository."""
    said = None if adapter is None else adapter.config.get("base_model_name_or_path")
    return name_repository(said)


def name_repository(said: object) -> str:
    """The repository of the Hub that a setting names; empty where it is a folder, or nothing.

    >>> name_repository("Qwen/Qwen3-8B"), name_repository("/models/Qwen3-8B")
    ('Qwen/Qwen3-8B', '')
    >>> name_repository("/root/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/b968826d")
    'Qwen/Qwen3-8B'
    """
    if not isinstance(said, str):
        return ""
    found = next(filter(None, map(_CACHED.fullmatch, PurePath(said).parts)), None)
    named = said if found is None else f"{found['org']}/{found['name']}"
    return named if _REPOSITORY.fullmatch(named) else ""
