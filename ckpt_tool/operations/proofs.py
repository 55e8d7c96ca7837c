"""Proofs that need bytes, before anything is written: replicas agree, tied weights are tied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, MappingError, Problem, UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.readers.base import Checkpoint, Entry, Holding
from ckpt_tool.tensors.equality import Pair, are_equal, first_differences
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import Chunk, LazyTensor

#: What families call the table of token embeddings.
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")

_Replica = tuple[str, Holding, Holding]


def prove_replicas(checkpoint: Checkpoint, recorded_too: bool, team: Team) -> None:
    """Require that blocks held by several ranks are equal; CheckpointError lists those that differ.

    Every process of the team compares its share, and all learn of all.

    Where nothing in the files says that ranks are replicas (plain tensors, norms under tensor
    parallelism), equality is the only evidence, so it is always checked. Replicas that the mesh
    records (HSDP) are read only with ``recorded_too``.
    """
    pairs: list[Pair[_Replica]] = []
    for entry in checkpoint.entries.values():
        for owner, other in entry.replicas():
            if recorded_too or not other.replicated:
                label = (entry.name, owner, other)
                pairs.append(Pair(label, _block(entry, owner), _block(entry, other)))
    if not pairs:
        return
    share = [pairs[index] for index in team.world.share([pair.left.nbytes for pair in pairs])]
    team.progress.start("replicas", sum(pair.left.nbytes for pair in share))

    def compare() -> list[Problem]:
        found = first_differences(share, team.jobs, team.progress.advance)
        return [
            Problem("replica", name, _replica_message(index, owner, other))
            for (name, owner, other), index in found.items()
        ]

    problems = [problem for part in team.world.everyone(compare) for problem in part]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: {len(problems)} copies that should be equal differ between ranks",
            problems,
            hint="The ranks diverged in training, or a file is from another step.",
        )


@dataclass(frozen=True, slots=True)
class TiedHead:
    """How the language-model head is written: ``tied`` as config.json shall say it."""

    tied: bool | None
    dropped: bool = False
    name: str = ""
    embedding: str = ""


def tied_head(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, wanted: bool | None, jobs: int
) -> TiedHead:
    """Whether the head is dropped because it repeats the embedding, proven on the bytes.

    ``wanted`` is the user's flag, None to follow the config. MappingError where config and
    weights contradict each other, UsageError where the flag contradicts both.
    """
    head, embedding = _head_and_embedding(tensors)
    if head is None:
        return _without_head(config, wanted)
    if wanted is None and not config.tied:
        return TiedHead(config.tied)
    if embedding is None:
        return _without_embedding(wanted, head)
    equal = _equal(tensors[head], tensors[embedding], jobs)
    tied = config.tied if wanted is None else wanted
    if tied and not equal:
        what = "config.json ties" if wanted is None else "--tie-word-embeddings would tie"
        raise MappingError(
            f"{what} {head} to {embedding}, but they differ",
            hint="Write both, and a config that does not tie them, with --no-tie-word-embeddings.",
        )
    if wanted is False and config.tied and equal:
        raise UsageError(
            f"--no-tie-word-embeddings: config.json ties {head} to {embedding}, and they are equal",
            hint="Leave the flag out: the head is then not written twice.",
        )
    return TiedHead(tied, dropped=bool(tied), name=head, embedding=embedding)


def _without_head(config: ModelConfig, wanted: bool | None) -> TiedHead:
    if wanted is False and config.tied:
        raise UsageError(
            "--no-tie-word-embeddings: the checkpoint has no head of its own, and config.json"
            " ties it to the embedding",
        )
    return TiedHead(config.tied if wanted is None else wanted)


def _without_embedding(wanted: bool | None, head: str) -> TiedHead:
    if wanted is not False:
        what = "config.json ties" if wanted is None else "--tie-word-embeddings would tie"
        raise MappingError(
            f"{what} {head} to the token embedding, but there is none of its shape",
            hint="Write it, and a config that does not tie it, with --no-tie-word-embeddings.",
        )
    return TiedHead(False)


def _head_and_embedding(tensors: Mapping[str, LazyTensor]) -> tuple[str | None, str | None]:
    """The language-model head and the token embedding of its shape, by the ends of their names."""
    head = next((name for name in tensors if is_weight_of(name, ("lm_head",))), None)
    if head is None:
        return None, None
    shape = tensors[head].shape
    alike = (name for name, tensor in tensors.items() if tensor.shape == shape)
    return head, only_embedding(alike)


def only_embedding(names: Iterable[str]) -> str | None:
    """The one token embedding among ``names``; None where there is none, or several."""
    found = [name for name in names if is_weight_of(name, _EMBEDDINGS)]
    return found[0] if len(found) == 1 else None


def is_weight_of(name: str, modules: tuple[str, ...]) -> bool:
    """Whether ``name`` is the weight of a module with one of these names."""
    parts = name.split(".")
    return parts[-1] == "weight" and len(parts) > 1 and parts[-2] in modules


def _equal(one: LazyTensor, other: LazyTensor, jobs: int) -> bool:
    """Whether two tensors are equal; those of one memory, as tied weights are saved, are."""
    alike = (one.shape, one.dtype, one.chunks) == (other.shape, other.dtype, other.chunks)
    return alike or are_equal(one, other, jobs)


def _block(entry: Entry, holding: Holding) -> LazyTensor:
    """A holding's block as a tensor of its own."""
    sizes = holding.box.sizes
    chunk = Chunk(Box((0,) * len(sizes), sizes), holding.region)
    return LazyTensor(sizes, entry.dtype, entry.dtype, (chunk,))


def _replica_message(index: int, owner: Holding, other: Holding) -> str:
    one, another = map(_holder, (other, owner))
    return f"{one} differs from {another} at element {index} of {owner.box}"


def _holder(holding: Holding) -> str:
    """The rank, or the file and the folder that tells what it is of."""
    if holding.rank is not None:
        return f"rank {holding.rank}"
    path = Path(holding.region.path)
    return f"{path.parent.name}/{path.name}"
