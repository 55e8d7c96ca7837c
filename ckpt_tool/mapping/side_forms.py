"""Settings of tokenizers and processors as transformers 4, and what is built on it, reads them too.

transformers 5 reads both forms. What is said differently, as its 5.0 and 4.57 save it: the class
``TokenizersBackend`` is ``PreTrainedTokenizerFast``, a list of ``extra_special_tokens`` is
``additional_special_tokens`` (``extra_special_tokens`` is a dictionary there), and the parts of
``processor_config.json`` have files of their own.
"""

from __future__ import annotations

import json
from typing import Any

_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}

#: A part of a processor, and the file that has it in transformers 4.
_PARTS = {
    "image_processor": "preprocessor_config.json",
    "feature_extractor": "preprocessor_config.json",
    "video_processor": "video_preprocessor_config.json",
}


def rewrite_tokenizer_config(settings: dict[str, Any]) -> bytes | None:
    """``tokenizer_config.json`` for both; None where it is that already."""
    found = dict(settings)
    named = found.get("tokenizer_class")
    if isinstance(named, str) and named in _CLASSES:
        found["tokenizer_class"] = _CLASSES[named]
    extra = found.get("extra_special_tokens")
    if isinstance(extra, list):
        del found["extra_special_tokens"]
        found.setdefault("additional_special_tokens", extra)
    return None if found == settings else encode(found)


def make_preprocessors(settings: dict[str, Any]) -> dict[str, bytes]:
    """The files of its own that each part of ``processor_config.json`` has in transformers 4."""
    beside = {k: settings[k] for k in ("processor_class",) if isinstance(settings.get(k), str)}
    made: dict[str, bytes] = {}
    for part, name in _PARTS.items():
        if isinstance(settings.get(part), dict) and name not in made:
            made[name] = encode(beside | settings[part])
    return made


def encode(settings: dict[str, Any]) -> bytes:
    """JSON as transformers writes it."""
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
