"""``README.md`` of a written folder: the model card that the Hub shows.

It says what files say, and nothing that is of one machine: the same source gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckpt_tool.common.version import __version__
from ckpt_tool.common.wording import count_noun, format_bytes
from ckpt_tool.mapping.lora.options import LoraNote
from ckpt_tool.plans.provenance import find_role, find_step
from ckpt_tool.plans.usage import Usage
from ckpt_tool.readers import find_format
from ckpt_tool.readers.base import Checkpoint

CARD_NAME = "README.md"

_HUB = "https://huggingface.co"
#: What became of the adapters, before the number of modules that have one.
_DONE = {"fuse": "fused into ", "both": "fused into, and split off from, "}


@dataclass(frozen=True)
class Weights:
    """How many tensors there are, and the bytes of their files."""

    num_tensors: int
    total_bytes: int


def make_card(
    checkpoint: Checkpoint, usage: Usage, weights: Weights, lora: LoraNote | None
) -> bytes:
    """The card of a folder that is opened as ``usage`` says."""
    step = find_step(checkpoint)
    title = usage.architecture or ("LoRA adapter" if usage.library == "peft" else "Model")
    lines = [
        *_list_settings(checkpoint, usage),
        "",
        f"# {title}{'' if step is None else f', step {step}'}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {said} |" for what, said in _list_facts(checkpoint, usage, weights, lora)),
        "",
        "```python",
        *list_python(usage, '"."', "  # this folder, or the name of its repository"),
        "```",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def list_python(usage: Usage, place: str, said: str = "") -> Iterator[str]:
    """The lines of Python that open what lies at ``place``; ``said``: a comment on that."""
    code = ", trust_remote_code=True" if usage.needs_code else ""
    classes = [usage.opener, *["AutoTokenizer"] * usage.has_tokenizer]
    if usage.adapter is not None:
        yield "from peft import PeftModel"
    yield f"from transformers import {', '.join(sorted(classes))}"
    yield ""
    yield f"folder = {place}{said}"
    if usage.library == "peft":
        yield f'model = {usage.opener}.from_pretrained("{usage.base_model or "BASE_MODEL"}")'
        yield "model = PeftModel.from_pretrained(model, folder)"
        return
    yield f"model = {usage.opener}.from_pretrained(folder{code})"
    if usage.adapter:
        inside = f'folder, subfolder="{usage.adapter}"'
        yield f"model = PeftModel.from_pretrained(model, {inside})"
    if usage.has_tokenizer:
        yield f"tokenizer = AutoTokenizer.from_pretrained(folder{code})"


def _list_settings(checkpoint: Checkpoint, usage: Usage) -> Iterator[str]:
    """The front matter that the Hub reads, as YAML."""
    yield "---"
    yield f"library_name: {usage.library}"
    if usage.base_model:
        yield f'base_model: "{usage.base_model}"'
    yield "tags:"
    yield "- ckpt-tool"
    yield f"- {checkpoint.format}"
    yield "---"


def _list_facts(
    checkpoint: Checkpoint, usage: Usage, weights: Weights, lora: LoraNote | None
) -> Iterator[tuple[str, str]]:
    if usage.base_model:
        yield "Base model", f"[{usage.base_model}]({_HUB}/{usage.base_model})"
    step, role = find_step(checkpoint), find_role(checkpoint.path)
    if step is not None:
        yield "Trained", f"to step {step}{f' ({role})' if role else ''}"
    ranks = checkpoint.world_size
    of_ranks = "" if ranks is None else f" of {count_noun(ranks, 'rank')}"
    yield "Merged from", f"{find_format(checkpoint.format).title}{of_ranks}"
    if lora is not None:
        inside = f" in {usage.adapter}/" if usage.adapter else ""
        what = f"{_DONE.get(lora.mode, '')}{count_noun(lora.num_modules, 'module')}{inside}"
        yield "LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}: {what}"
    size = f"{count_noun(weights.num_tensors, 'tensor')}, {format_bytes(weights.total_bytes)}"
    yield "Weights", f"{size}{f', {usage.dtype}' if usage.dtype else ''}"
    yield "Made with", f"ckpt-tool {__version__}"
