"""The head that repeats the embedding: proven on the bytes before it is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.wording import count_doing
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.hub.heads import find_only_embedding, is_head
from ckpt_tool.tensors.equality import Pair, locate_differences
from ckpt_tool.tensors.lazy import LazyTensor


class TiedHeadError(MappingError):
    """Config and weights contradict each other about the head."""


@dataclass(frozen=True, slots=True)
class TiedHead:
    """How the language-model head is written: ``tied`` as config.json shall say it."""

    tied: bool | None
    dropped: bool = False
    name: str = ""
    embedding: str = ""


def settle_tied_head(model: HubModel, wanted: bool | None, team: Team) -> HubModel:
    """The model without a head that repeats its embedding, and a config that says so.

    Every process of the team compares its share of the two. Raises what :func:`find_tied_head`
    raises; a model without config is as it was.
    """
    if model.config is None:
        return model
    head = find_tied_head(model.tensors, model.config, wanted, team)
    config = model.config.with_tied(head.tied)
    if not head.dropped:
        return replace(model, config=config)
    kept = {name: tensor for name, tensor in model.tensors.items() if name != head.name}
    reason = f"equal to {head.embedding}, to which the config ties it"
    return replace(
        model,
        tensors=kept,
        config=config,
        dropped=model.dropped | {head.name: reason},
        tied=model.tied | {head.name: head.embedding},
    )


def untie_unsaid(model: HubModel, team: Team) -> HubModel:
    """The model with a config that says so where its head is none of the embedding's copies.

    That is where a config of several parts says nothing: some classes tie then (Mistral 3 of
    transformers 5), and have no place for the head, though their models are released with one.
    Every process of the team compares its share of the two.
    """
    config = model.config
    if config is None or config.tied is not None or config.text is config.raw:
        return model
    head, embedding = _find_head_and_embedding(model.tensors)
    if head is None or embedding is None:
        return model
    if are_equal_together(model.tensors[head], model.tensors[embedding], team):
        return model
    return replace(model, config=config.with_tied(False))


def settle_ties(model: HubModel, team: Team, *, strict: bool = True) -> HubModel:
    """The model without what repeats another tensor, as its class says, proven on the bytes.

    Every process of the team compares its share. ``strict``: TiedHeadError that lists those which
    differ; else they are tensors like others.
    """
    ties = model.ties or {}
    equal = {name: are_equal_together(tie.copy, tie.original, team) for name, tie in ties.items()}
    differing = [name for name in ties if not equal[name]]
    if differing and strict:
        raise TiedHeadError(
            f"{count_doing(len(differing), 'tensor', 'differ')} from others that the class"
            " holds to be the same",
            [f"{name}: tied to {ties[name].source}" for name in differing],
            hint="Write both, and a config that does not tie them, with"
            " `tie_word_embeddings=False`.",
        )
    kept = {name: ties[name].copy for name in differing}
    tied = {name: tie.source for name, tie in ties.items() if equal[name]}
    dropped = {
        name: f"equal to {source}, to which the class ties it" for name, source in tied.items()
    }
    return replace(
        model,
        tensors=model.tensors | kept,
        dropped=model.dropped | dropped,
        tied=model.tied | tied,
    )


def find_tied_head(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, wanted: bool | None, team: Team
) -> TiedHead:
    """Whether the head is dropped because it repeats the embedding, proven on the bytes.

    ``wanted`` is what the user says, None to follow the config. MappingError where config and
    weights contradict each other, UsageError where the user contradicts both.
    """
    head, embedding = _find_head_and_embedding(tensors)
    if head is None:
        return _without_head(config, wanted)
    if wanted is None and not config.tied:
        return TiedHead(config.tied)
    if embedding is None:
        return _without_embedding(wanted, head)
    equal = are_equal_together(tensors[head], tensors[embedding], team)
    tied = config.tied if wanted is None else wanted
    if tied and not equal:
        what = "config.json ties" if wanted is None else "`tie_word_embeddings=True` would tie"
        raise TiedHeadError(
            f"{what} {head} to {embedding}, but they differ",
            hint="Write both, and a config that does not tie them, with"
            " `tie_word_embeddings=False`.",
        )
    if wanted is False and config.tied and equal:
        raise UsageError(
            f"`tie_word_embeddings=False`: config.json ties {head} to {embedding}, and they are"
            " equal",
            hint="Leave it out: the head is then not written twice.",
        )
    return TiedHead(tied, dropped=bool(tied), name=head, embedding=embedding)


def are_equal_together(one: LazyTensor, other: LazyTensor, team: Team) -> bool:
    """Whether two tensors have one shape, dtype and bits, each process comparing some rows.

    Those of one memory, as tied weights are saved, are not read. Raises what reading them does.
    """
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if one.chunks == other.chunks:
        return True

    left, right = (_take_share(tensor, team) for tensor in (one, other))
    team.progress.start("tied head", left.nbytes)

    def compare() -> bool:
        return not locate_differences([Pair("", left, right)], team.jobs, team.progress.advance)

    return all(team.world.everyone(compare))


def _take_share(tensor: LazyTensor, team: Team) -> LazyTensor:
    """The rows that this process looks at; all of them where there is nothing to share out."""
    world = team.world
    if not tensor.shape or world.size == 1:
        return tensor
    rows = tensor.shape[0]
    start, stop = (rows * rank // world.size for rank in (world.rank, world.rank + 1))
    return tensor.narrow(0, start, stop - start)


def _without_head(config: ModelConfig, wanted: bool | None) -> TiedHead:
    if wanted is False and config.tied:
        raise UsageError(
            "`tie_word_embeddings=False`: the checkpoint has no head of its own, and config.json"
            " ties it to the embedding",
        )
    tied = config.ties_somewhere or config.tied
    return TiedHead(tied if wanted is None else wanted)


def _without_embedding(wanted: bool | None, head: str) -> TiedHead:
    if wanted is not False:
        what = "config.json ties" if wanted is None else "`tie_word_embeddings=True` would tie"
        raise TiedHeadError(
            f"{what} {head} to the token embedding, but there is none of its shape",
            hint="Write it, and a config that does not tie it, with `tie_word_embeddings=False`.",
        )
    return TiedHead(False)


def _find_head_and_embedding(
    tensors: Mapping[str, LazyTensor],
) -> tuple[str | None, str | None]:
    """The language-model head and the token embedding of its shape, by the ends of their names."""
    head = next(filter(is_head, tensors), None)
    if head is None:
        return None, None
    shape = tensors[head].shape
    return head, find_only_embedding(n for n, tensor in tensors.items() if tensor.shape == shape)
