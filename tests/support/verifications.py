"""Verifications made by hand, for whatever shows them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ckpt_tool.compare.mismatch import Mismatch
from ckpt_tool.compare.stats import Stats, Tolerance
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.operations.options import VerifyOptions
from ckpt_tool.operations.sides import Side
from ckpt_tool.operations.verify import VerifyResult
from ckpt_tool.readers.base import Checkpoint, Mesh, ShardFile
from ckpt_tool.tensors.dtypes import BFLOAT16
from ckpt_tool.tensors.lazy import LazyTensor

FOLDER = Path("/runs/grpo/global_step_100/actor")


def side(path: Path, names: Sequence[str], warnings: Sequence[str] = (), world: int = 2) -> Side:
    """An FSDP checkpoint of ``world`` ranks, each with a file of 1.5 GB."""
    files = tuple(
        ShardFile(f"{path}/model_world_size_{world}_rank_{rank}.pt", 1_500_000_000, rank)
        for rank in range(world)
    )
    mesh = Mesh((world,), ("fsdp",))
    checkpoint = Checkpoint("fsdp", path, {}, files, world_size=world, mesh=mesh)
    tensors = {name: LazyTensor((4, 8), BFLOAT16, BFLOAT16, ()) for name in names}
    model = HubModel(tensors, warnings=tuple(warnings))
    return Side(checkpoint, model, {f.path: f.rank for f in files})


def stats(**changed: object) -> Stats:
    """A tensor of 1000 elements of which 250 differ, by 2**-12 to 2**-8."""
    found = Stats(
        num_elements=1000,
        num_different=250,
        num_outside=250,
        first_index=7,
        first_values=(0.125, 0.1254),
        max_abs=0.0058,
        max_rel=0.31,
        max_ulp=12,
        sum_abs=0.5,
        squares=(10.0, 10.0, 1e-4),
        product=9.999,
        exponents={-12: 200, -11: 30, -8: 20},
    )
    for key, value in changed.items():
        setattr(found, key, value)
    return found


def mismatch(name: str, **changed: object) -> Mismatch:
    """A tensor whose values differ, on rank 1; shapes have no statistics unless they are given."""
    fields: dict = {
        "name": name,
        "kind": "values",
        "left": "bfloat16 [25, 40]",
        "right": "bfloat16 [25, 40]",
        "stats": stats(),
        "first_index": (0, 7),
        "source": f"{FOLDER}/model_world_size_2_rank_1.pt",
        "rank": 1,
        "hint": "only rank 1's shard differs: stale, or from another step",
    }
    if changed.get("kind") == "shape":
        fields |= {"stats": None, "first_index": None, "source": "", "rank": None}
    fields |= changed
    fields.setdefault("distance", fields["stats"].distance if fields["stats"] else 0.0)
    return Mismatch(**fields)


def result(
    distances: Mapping[str, float],
    mismatched: Sequence[Mismatch] = (),
    **changed: object,
) -> VerifyResult:
    """A comparison of the tensors of ``distances`` and of ``mismatched``, exact by default."""
    names = list(dict.fromkeys([*distances, *(each.name for each in mismatched)]))
    fields: dict = {
        "left": side(FOLDER, names),
        "right": side(Path("/models/base"), names),
        "options": VerifyOptions(),
        "num_compared": len(names),
        "missing": [],
        "unexpected": [],
        "mismatched": list(mismatched),
        "close": [],
        "tied": {},
        "ignored": [],
        "distances": dict(distances),
        "names_hint": "",
        "compared_bytes": 3_000_000_000,
        "seconds": 4.2,
    }
    return VerifyResult(**fields | changed)


def tolerant(atol: float = 0.0, rtol: float = 0.0, **changed: bool) -> VerifyOptions:
    """Options with a tolerance."""
    return VerifyOptions(tolerance=Tolerance(atol, rtol), **changed)


def llama(layers: int, distance: float = 0.0) -> dict[str, float]:
    """The names of a model such as Llama or Qwen, each at ``distance``."""
    modules = (
        "input_layernorm mlp.down_proj mlp.gate_proj mlp.up_proj post_attention_layernorm"
        " self_attn.k_norm self_attn.k_proj self_attn.o_proj self_attn.q_norm self_attn.q_proj"
        " self_attn.v_proj"
    )
    inside = [
        f"model.layers.{layer}.{module}.weight"
        for layer in range(layers)
        for module in modules.split()
    ]
    outside = ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]
    return dict.fromkeys([*outside, *inside], distance)
