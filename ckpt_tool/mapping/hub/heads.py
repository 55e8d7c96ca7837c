"""The head of a language model and its token embedding, by the ends of their names."""

from __future__ import annotations

from collections.abc import Iterable

#: What families call the table of token embeddings.
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")
#: What they call the head; `embed_out` is that of GPT-NeoX, on the Hub only.
HEADS = ("lm_head", "embed_out")
#: What makes tokens of features, and what labels, by the names of its module.
OUTPUTS = frozenset(("lm_head", "embed_out", "output_projection"))
CLASSIFIERS = ("score", "classifier")


def find_only_embedding(names: Iterable[str]) -> str | None:
    """The one token embedding among ``names``; None where there is none, or several."""
    found = [name for name in names if is_weight_of(name, EMBEDDINGS)]
    return found[0] if len(found) == 1 else None


def is_head(name: str) -> bool:
    """Whether ``name`` is the weight of a language model's head."""
    return is_weight_of(name, HEADS)


def is_output(name: str) -> bool:
    """Whether ``name`` is a parameter of what makes tokens of features, whatever it is called."""
    parts = name.split(".")
    return len(parts) > 1 and parts[-2] in OUTPUTS


def is_classifier(name: str) -> bool:
    """Whether ``name`` is a parameter of a classifier's head, which takes the place of that."""
    return name.split(".", maxsplit=1)[0] in CLASSIFIERS


def is_weight_of(name: str, modules: tuple[str, ...]) -> bool:
    """Whether ``name`` is the weight of a module with one of these names."""
    parts = name.split(".")
    return parts[-1] == "weight" and len(parts) > 1 and parts[-2] in modules
