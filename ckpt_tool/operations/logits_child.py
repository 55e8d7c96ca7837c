"""The process that runs two models: a request on stdin, an answer on stdout, each a JSON object.

The request has ``folders`` of both, ``text``, ``most`` tokens of it, and ``jobs``. The answer is
the fields of :class:`ckpt_tool.operations.logits.Logits`, or ``refused``, why there are none. No
code of a checkpoint is run, nothing is fetched, and only safetensors are opened.
"""

from __future__ import annotations

import gc
import os
from typing import Any

from ckpt_tool.mapping.hub.library import describe_error, quieten
from ckpt_tool.plans.checks.child import serve

_SHOWN = 5  # likeliest tokens
_LISTED = 8  # positions that do not agree


class _RefusedError(Exception):
    """There is no answer, and this is why."""


def main() -> None:
    """Answer the one request."""
    serve(_answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        with quieten():
            return _compare(request)
    except _RefusedError as error:
        return {"refused": str(error)}


def _compare(request: dict[str, Any]) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of Hugging Face is imported
    import torch
    import transformers

    torch.set_num_threads(request["jobs"])
    left, right = request["folders"]
    tokenizer = _open_tokenizer(right)
    ids = list(tokenizer(request["text"])["input_ids"])
    if list(_open_tokenizer(left)(request["text"])["input_ids"]) != ids:
        raise _RefusedError("the two tokenizers make other tokens of the text")
    if not 1 <= len(ids) <= request["most"]:
        raise _RefusedError(f"the text has {len(ids):,} tokens, expected 1 to {request['most']:,}")
    a, b = (_find_logits(folder, ids) for folder in (left, right))
    columns = min(a.shape[1], b.shape[1])
    found = _measure(a[:, :columns], b[:, :columns], ids, tokenizer)
    return found | {"library": f"transformers {transformers.__version__}"}


def _open_tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever reading a tokenizer raises
        raise _RefusedError(f"{folder}: its tokenizer: {describe_error(error)}") from error


def _find_logits(folder: str, ids: list[int]) -> Any:
    """The logits [tokens, vocabulary] of a model in float32; it is gone when this returns."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            attn_implementation="eager", output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # whatever building and loading a model raises
        raise _RefusedError(f"{folder}: {describe_error(error)}") from error
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise _RefusedError(f"{folder}: {type(model).__name__} misses {', '.join(absent[:5])}")
    model = model.float().eval()
    if max(ids) >= model.get_input_embeddings().weight.shape[0]:
        raise _RefusedError(f"{folder}: has no embedding of token {max(ids)}")
    try:
        with torch.inference_mode():
            found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    except Exception as error:  # whatever running a model raises
        raise _RefusedError(f"{folder}: {describe_error(error)}") from error
    del model
    gc.collect()
    return found


def _measure(a: Any, b: Any, ids: list[int], tokenizer: Any) -> dict[str, Any]:
    import torch

    finite = torch.isfinite(a) & torch.isfinite(b)
    distance = torch.where(finite, (a.double() - b.double()).abs(), 0.0)
    largest = int(distance.argmax())
    apart = torch.nonzero(a.argmax(1) != b.argmax(1)).flatten().tolist()
    return {
        "num_tokens": len(ids),
        "vocabulary": a.shape[1],
        "max_abs": float(distance.max()),
        "mean_abs": float(distance.sum() / max(int(finite.sum()), 1)),
        "position": largest // a.shape[1],
        "num_odd": int((~finite).sum()),
        "num_agreeing": len(ids) - len(apart),
        "disagreements": [
            {
                "position": at,
                "after": tokenizer.decode([ids[at]]),
                "checkpoint": _name_likeliest(a[at], tokenizer),
                "reference": _name_likeliest(b[at], tokenizer),
            }
            for at in apart[:_LISTED]
        ],
    }


def _name_likeliest(row: Any, tokenizer: Any) -> list[list[Any]]:
    """Text and probability of the likeliest tokens, 0 where that is no number."""
    import torch

    shares, chosen = torch.softmax(row.double(), 0).nan_to_num(0.0).topk(min(_SHOWN, len(row)))
    pairs = zip(chosen.tolist(), shares.tolist(), strict=True)
    return [[tokenizer.decode([token]), share] for token, share in pairs]
