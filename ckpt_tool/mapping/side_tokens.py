"""Tokens that were added to a tokenizer, held against the rows of the embedding.

Who adds tokens and does not resize the embedding has a model that fails on the first of them, with
an index out of range; servers differ in when they find out. ``added_tokens`` of ``tokenizer.json``
is before its vocabulary, so that the beginning of the file is enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.regular import read_regular
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig

#: Room for thousands of added tokens.
_HEAD = 1 << 20
_ADDED = re.compile(r'"added_tokens"\s*:\s*')


def warn_of_tokens(files: Mapping[str, Path], config: ModelConfig) -> Iterator[str]:
    """A line where tokens have numbers for which the model has no row.

    ``config``: its ``vocab_size`` is the number of rows. Nothing is said of a tokenizer that cannot
    be read so.
    """
    written = replace(config, raw=config.written, changes={}).text
    rows = written.get("vocab_size")
    if type(rows) is not int or "additional_vocab_size" in written:
        return
    added = _list_added(files["tokenizer.json"]) if "tokenizer.json" in files else {}
    beyond = sorted(number for number in added if number >= rows)
    if beyond:
        yield (
            f"{files['tokenizer.json']}: {count_noun(len(beyond), 'token')} from number"
            f" {beyond[0]} ({added[beyond[0]]!r:.40}), for which the embedding of {rows} rows has"
            " none: the model cannot take them"
        )


def _list_added(path: Path) -> dict[int, str]:
    """The added tokens by their numbers; none where the file says it otherwise."""
    head = read_regular(path, _HEAD).decode(errors="ignore")
    found = _ADDED.search(head)
    if found is None:
        return {}
    try:
        tokens, _ = json.JSONDecoder().raw_decode(head, found.end())
        return {int(each["id"]): str(each["content"]) for each in tokens}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
