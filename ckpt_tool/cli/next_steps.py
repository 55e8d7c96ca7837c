"""What a merged model is for: the commands that come next, ready to be copied."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckpt_tool.cli import consoles, progress
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.wording import format_bytes

if TYPE_CHECKING:
    from ckpt_tool.plans.options import WriteResult
    from ckpt_tool.plans.usage import Usage


#: What brings a folder of objects here, by scheme.
_FETCH = {"s3": "aws s3 sync", "gs": "gcloud storage rsync --recursive"}


def show_next(result: WriteResult, *, is_uploaded: bool) -> None:
    """A line for each thing to do with the folder; nothing with ``--quiet``."""
    if progress.quiet or result.differences:
        return
    usage = result.usage
    dtype = "" if usage is None or not usage.dtype else f"{usage.dtype}, "
    size = format_bytes(result.total_bytes)
    console = consoles.make_console()
    console.print(f"\nNext, with {result.output} ({dtype}{size}):", soft_wrap=True)
    for what, command in _list_next(result, usage, is_uploaded=is_uploaded):
        console.print(f"  {what:<8} {command}", soft_wrap=True)


def _list_next(
    result: WriteResult, usage: Usage | None, *, is_uploaded: bool
) -> Iterator[tuple[str, str]]:
    folder = shlex.quote(str(result.output))
    if isinstance(result.output, Address):
        yield from _list_elsewhere(result.output, result, usage)
        return
    if usage is not None:
        yield "python", _spell_python(str(result.output), usage)
        if usage.adapter:
            yield "peft", _spell_peft(f"{result.output}/{usage.adapter}", "model")
        if usage.is_generative:
            yield "serve", f"vllm serve {folder}{_spell_serving(usage)}"
    if result.manifest:
        yield "check", f"ckpt verify {folder}"
    if not is_uploaded:
        yield "share", f"hf upload ORG/NAME {folder}"


def _list_elsewhere(
    out: Address, result: WriteResult, usage: Usage | None
) -> Iterator[tuple[str, str]]:
    """What can be done with objects; vLLM reads them with one of its loaders, others do not."""
    place = shlex.quote(str(out))
    if out.scheme == "az":
        pattern = shlex.quote(f"{out.key}/*")
        yield "fetch", f"az storage blob download-batch -s {out.bucket} --pattern {pattern} -d DIR"
    else:
        yield "fetch", f"{_FETCH[out.scheme]} {place} DIR"
    if usage is not None and usage.is_generative:
        yield "serve", f"vllm serve {place} --load-format runai_streamer{_spell_serving(usage)}"
    if result.manifest:
        yield "check", f"ckpt verify {place}"


def _spell_python(folder: str, usage: Usage) -> str:
    if usage.library == "peft":
        return _spell_peft(folder, "BASE_MODEL")
    code = ", trust_remote_code=True" if usage.needs_code else ""
    return f"model = transformers.{usage.opener}.from_pretrained({_quote(folder)}{code})"


def _spell_peft(folder: str, model: str) -> str:
    return f"model = peft.PeftModel.from_pretrained({model}, {_quote(folder)})"


def _quote(text: str) -> str:
    """A string of Python, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _spell_serving(usage: Usage) -> str:
    tokenizer = usage.base_model or "ORG/NAME"
    return ("" if usage.has_tokenizer else f" --tokenizer {tokenizer}") + (
        " --trust-remote-code" if usage.needs_code else ""
    )
