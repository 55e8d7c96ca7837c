"""Models, our checkpoints of them, megatron-core's own, and the logits that real ranks compute.

All of it is made once per test run, by one process that imports megatron-core, which takes seconds,
and forks the ranks of all worlds.
"""

from pathlib import Path
from typing import Any

import pytest

from ckpt_tool import ToMcoreOptions, WriteOptions, convert_to_mcore
from tests.real.megatron_has import (
    MIXED_AHEAD,
    MIXED_DELTA_NET,
    MIXED_LATENT,
    NORMED_QUERIES,
    TRITON,
)
from tests.real.megatron_jobs import (
    Checkpoint,
    Job,
    Layout,
    Logits,
    Names,
    Save,
    SaveRanks,
    Sizes,
)
from tests.real.megatron_models import NAMES, WITH_EXPERTS, write_model
from tests.real.megatron_routed import MODELS as ROUTED
from tests.real.megatron_run import run_jobs
from tests.support import megatron_seeing as seeing
from tests.support.versions import TRANSFORMERS

SIZES = {
    "tp1": Sizes(),
    "tp2": Sizes(tp=2),
    "pp2": Sizes(pp=2),
    "ep2": Sizes(ep=2),
    "etp2": Sizes(tp=2, etp=2),
    "tp2_pp2": Sizes(tp=2, pp=2),
    "tp2_ep2": Sizes(tp=2, ep=2),
    "vpp2": Sizes(pp=2, vpp=2),
}
#: How ranks of these sizes name and lay out what they save, so that every family is saved in every
#: way; the vocabulary is padded to a multiple of so many rows.
SAVED: dict[str, tuple[Names, Layout, int]] = {
    "tp1": ("local", "singleton", 1),
    "tp2": ("local", "default", 1),
    "pp2": ("te", "per-layer", 1),
    "ep2": ("local", "singleton", 1),
    "etp2": ("te", "singleton", 1),
    "tp2_pp2": ("local", "per-layer", 1),
    "tp2_ep2": ("te", "default", 1),
    "vpp2": ("te", "default", 96),
}
#: Every model is loaded at tp1 and pp2, and at tp2_ep2 or, without experts, at tp2. These at more:
#: how things are cut does not depend on the family, so that one of each kind has every size.
MORE_SIZES: dict[str, tuple[str, ...]] = {
    "llama": ("tp2_pp2", "vpp2"),
    "mistral": ("vpp2",),  # with a padded vocabulary
    "qwen2": ("vpp2",),  # whose first and last chunk have the same embedding
    "qwen3_moe": ("tp2", "ep2", "etp2", "tp2_pp2", "vpp2"),
    "qwen3_moe_mlp_only": ("vpp2",),  # whose chunks differ
    "deepseek_v3_mtp": ("tp2", "ep2", "etp2", "tp2_pp2", "vpp2"),
}


#: Models of these sizes alone: layers that share keys and values cannot be on several stages.
ONLY_SIZES = {"gemma4_text": ("tp1", "tp2"), "gemma4_moe": ("tp1", "pp2", "tp2_ep2")}


def _sizes_of(name: str) -> tuple[str, ...]:
    if name in ONLY_SIZES:
        return ONLY_SIZES[name]
    cut = "tp2_ep2" if name in WITH_EXPERTS else "tp2"
    return ("tp1", "pp2", cut, *MORE_SIZES.get(name, ()))


LOADED = [(name, size) for size in SIZES for name in NAMES if size in _sizes_of(name)]
#: What megatron-core saved itself, without us.
NATIVE = [(name, "tp1") for name in NAMES]
NATIVE += [("llama", "tp2"), ("qwen3", "pp2"), ("qwen2_moe", "ep2")]
#: Files that every rank saves for itself: the sizes, and how verl or Megatron-LM name things.
RANK_FILES: dict[tuple[str, str], dict[str, Any]] = {
    ("llama", "tp1"): {"names": "local"},
    ("llama", "tp2"): {"names": "local"},
    ("llama", "tp4"): {"sizes": Sizes(tp=4)},  # two query groups, each cut in two
    ("llama", "tp2_pp2"): {"style": "megatron-lm"},
    ("qwen2", "tp2"): {},
    ("qwen2", "pp2"): {},
    ("qwen3", "vpp2"): {"sizes": Sizes(pp=2, vpp=2)},
    ("qwen3", "vpp2_lm"): {
        "sizes": Sizes(pp=2, vpp=2),
        "style": "megatron-lm",
        "vocab_multiple": 64,
    },
    ("qwen3_moe", "ep2"): {"names": "local", "experts": "sequential"},
    ("qwen3_moe", "tp2"): {"sizes": Sizes(tp=2)},
    ("qwen3_moe", "etp2"): {},
    ("qwen3_moe", "etp2_lm"): {"sizes": Sizes(tp=2, etp=2), "style": "megatron-lm"},
    ("qwen3_moe", "tp2_ep2"): {"style": "megatron-lm"},
    ("qwen3_moe", "etp2_ep2"): {"sizes": Sizes(tp=2, ep=2, etp=2)},
    ("qwen3_moe", "pp2_ep2"): {"sizes": Sizes(pp=2, ep=2), "experts": "grouped"},
    ("qwen3_moe_mlp_only", "pp2"): {},
    ("qwen2_moe", "tp2_ep2"): {"experts": "grouped"},
    ("mixtral", "etp2"): {"experts": "grouped"},
    ("mixtral", "ep2"): {"experts": "sequential", "style": "megatron-lm"},
    ("deepseek_v3", "tp2"): {"names": "local"},
    ("deepseek_v3_mtp", "tp2"): {},
    ("deepseek_v3_mtp", "tp2_local"): {
        "sizes": Sizes(tp=2),
        "names": "local",
        "experts": "sequential",
    },
    ("deepseek_v3_mtp", "pp2"): {"experts": "sequential"},
    ("deepseek_v3_mtp", "tp2_pp2"): {"style": "megatron-lm"},
    ("glm4_moe", "ep2"): {},
    ("moonlight", "tp2_ep2"): {},
    ("olmoe", "tp2"): {},
    ("ernie4_5_moe", "ep2"): {"style": "megatron-lm"},
    ("glm4_moe_lite_mtp", "pp2"): {},
    ("glm_moe_dsa_mtp", "tp2"): {"names": "local"},
    ("gemma3_text", "tp2"): {},
    ("nemotron", "tp2"): {"names": "local"},
    ("gemma4_text", "tp2"): {},
    ("gemma4_moe", "tp2_ep2"): {"style": "megatron-lm"},
    ("gpt_oss", "tp2_ep2"): {},
    ("gpt_oss", "tp2"): {},
    ("gpt_oss", "ep2"): {"experts": "sequential", "names": "local", "style": "megatron-lm"},
    ("bailing_moe_v2", "tp2_ep2"): {},
    ("bailing_hybrid", "tp2_ep2"): {},
    ("nemotron_h", "tp2_ep2"): {"style": "megatron-lm"},
    ("nemotron-nas", "tp2"): {"names": "local"},
    ("nemotron_h", "pp2"): {"names": "local", "experts": "sequential"},
    ("falcon_h1", "tp2"): {},
    ("qwen3_next", "tp2"): {},
    ("qwen3_next", "pp2"): {"style": "megatron-lm"},
    ("qwen3_5", "tp2"): {"style": "megatron-lm"},
    ("step3p5", "tp2"): {"names": "local"},
}
#: What the installed transformers cannot build, and why.
UNKNOWN: dict[str, str] = {}
if TRANSFORMERS < (5, 0):
    _SINCE_5 = (
        "moonlight",
        "glm4_moe",
        "glm4_moe_mtp",
        "glm4_moe_lite_mtp",
        "deepseek_v2",
        "deepseek_v2_lite",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "minimax_m2",
        "ministral3",
        "exaone4",
        "gemma4_text",
        "gemma4_moe",
        "glm_moe_dsa_mtp",
        "deepseek_v32",
        "glm4",
        *ROUTED,
        "llama4_text",
        "nemotron_h",
        "falcon_h1",
        "qwen3_next",
        "qwen3_5",
        "qwen3_5_moe",
        "step3p5",
    )
    UNKNOWN = dict.fromkeys(_SINCE_5, "transformers 4 has no such")
_PLAIN = "since 0.19 queries of latent attention have a norm, here they have none"
_TURNED = "before 0.19 its indexer turns other columns, and norms are in projections"
#: What one of the releases that are tried has no layers for, and why.
UP_TO_0_18 = dict.fromkeys(("moonlight", "deepseek_v2_lite"), _PLAIN)
SINCE_0_19 = dict.fromkeys(("glm_moe_dsa_mtp", "deepseek_v32"), _TURNED)
#: What the installed megatron-core has no layers for, and why.
REFUSED = UP_TO_0_18 if NORMED_QUERIES else SINCE_0_19
if not TRITON:
    REFUSED = REFUSED | dict.fromkeys(("nemotron_h", "falcon_h1"), "its Mamba imports triton")
#: What HybridModels of megatron-core, before 0.18 MambaModels, load of ours and save.
HYBRID = [
    ("llama", "tp1"),
    ("qwen2", "tp2"),
    ("qwen3", "vpp2"),
    ("qwen3_moe_mlp_only", "pp2"),
    ("qwen2_moe", "tp2_ep2"),
    ("mixtral", "ep2"),
    ("glm4_moe_mtp", "tp2"),
    ("glm4_moe_mtp", "pp2"),
    ("deepseek_v3", "pp2"),
    ("deepseek_v3_mtp", "tp2_pp2"),
    ("gpt_oss", "tp2_ep2"),
    ("qwen3_next", "tp2_ep2"),
    ("qwen3_5", "pp2"),
]
#: Files of their ranks.
HYBRID_FILES: dict[tuple[str, str], dict[str, Any]] = {
    ("qwen3", "vpp2"): {"style": "megatron-lm"},
    ("qwen3_moe_mlp_only", "pp2"): {},
    ("glm4_moe_mtp", "tp2"): {"names": "local", "experts": "sequential"},
    ("qwen3_next", "tp2_ep2"): {},
}
if not MIXED_LATENT:
    HYBRID = [row for row in HYBRID if not row[0].startswith("deepseek")]
if not MIXED_DELTA_NET:
    HYBRID = [row for row in HYBRID if not row[0].startswith(("qwen3_next", "qwen3_5"))]
if not MIXED_AHEAD:  # nor are their stages interleaved
    HYBRID = [row for row in HYBRID if not row[0].endswith("_mtp") and row[1] != "vpp2"]
    HYBRID_FILES = {row: said for row, said in HYBRID_FILES.items() if row in HYBRID}
#: What models whose latent attention has one down projection load of ours and save. Before 0.19
#: they forget the norm that is part of it.
FUSED = [("deepseek_v3", "tp1"), ("deepseek_v3", "tp2")]
if not NORMED_QUERIES:
    FUSED = []
#: Whole models of transformers that see or hear, given text alone.
SEEING = tuple(seeing.MODELS)
#: Ours in another layout than megatron-core would choose by itself.
PER_LAYER = ("qwen3", "qwen3_moe")


def build(out: Path) -> None:
    """Make everything: `out/<name>/` then has the parts that the functions below name."""
    for name in NAMES:
        write_model(name, out / name)
        convert_to_mcore(hf(out, name), ours(out, name), ToMcoreOptions(write=UNSYNCED))
    for name in PER_LAYER:
        options = ToMcoreOptions(layers="per-layer", write=UNSYNCED)
        convert_to_mcore(hf(out, name), ours(out, f"{name}/per-layer"), options)
    for name in dict.fromkeys(name for name, _ in HYBRID):
        convert_to_mcore(hf(out, name), ours(out, f"{name}/hybrid"), _AS_HYBRID)
    for name in SEEING:
        seeing.write(name, out / "seeing" / name)
    run_jobs([job for world in (1, 2, 4) for job in _jobs(out, world)], timeout=1200)


def hf(out: Path, name: str) -> Path:
    """The Hugging Face folder of a model."""
    return out / name / "hf"


def ours(out: Path, name: str) -> Path:
    """Our checkpoint of it."""
    return out / name / "ours"


def native(out: Path, name: str, size: str) -> Path:
    """megatron-core's own checkpoint of the same weights, saved by ranks of these sizes."""
    return _of_real_ranks(out / name / f"native_{size}", name)


def ranks(out: Path, name: str, size: str) -> Path:
    """One of `RANK_FILES`."""
    return _of_real_ranks(out / name / f"ranks_{size}", name)


def saved(out: Path, name: str, size: str) -> Path:
    """What ranks of these sizes, which had loaded our checkpoint, saved."""
    return _of_real_ranks(out / name / f"saved_{size}", name)


def logits(out: Path, name: str, size: str) -> Path:
    """The logits of a model that real ranks of these sizes loaded from our checkpoint."""
    return _of_real_ranks(out / name / f"logits_{size}.safetensors", name)


def _of_real_ranks(path: Path, name: str) -> Path:
    """The path; the test that asks for it is skipped where there can be none."""
    if name in REFUSED:
        pytest.skip(f"megatron-core cannot build {name}: {REFUSED[name]}")
    return path


UNSYNCED = WriteOptions(fsync=False)
_AS_HYBRID = ToMcoreOptions(layers="hybrid", write=UNSYNCED)


def _jobs(out: Path, world: int) -> list[Job]:
    jobs: list[Job] = []
    names = [name for name in NAMES if name not in REFUSED]
    if world == 1:
        jobs += [Save(hf(out, name), Checkpoint(native(out, name, "tp1"))) for name in names]
        jobs += [
            _logits(
                out, name, "tp1", Checkpoint(ours(out, f"{name}/per-layer"), layout="per-layer")
            )
            for name in PER_LAYER
            if name in names
        ]
        jobs += [seeing.make_job(name, out / "seeing" / name) for name in SEEING]
    for name, size in LOADED:
        if SIZES[size].world_size == world and name in names:
            source = Checkpoint(ours(out, name), engine_states=True)
            jobs.append(_logits(out, name, size, source))
    for (name, size), options in RANK_FILES.items():
        sizes = options.get("sizes") or SIZES[size]
        if sizes.world_size == world and name in names:
            source = Checkpoint(ours(out, name), engine_states=True)
            settings = {**options, "sizes": sizes}
            jobs.append(SaveRanks(hf(out, name), ranks(out, name, size), source, **settings))
    jobs += _hybrid_jobs(out, world) + _fused_jobs(out, world)
    if world == 2:
        jobs += [
            Save(
                hf(out, name),
                Checkpoint(native(out, name, size)),
                SIZES[size],
                Checkpoint(native(out, name, "tp1")),
            )
            for name, size in NATIVE
            if size != "tp1" and name in names
        ]
    return jobs


def _hybrid_jobs(out: Path, world: int) -> list[Job]:
    jobs: list[Job] = []
    if world == 1:
        for name in dict.fromkeys(name for name, _ in HYBRID):
            saved_alone = Checkpoint(native(out, f"{name}/hybrid", "tp1"), hybrid=True)
            jobs.append(Save(hf(out, name), saved_alone))
    for name, size in HYBRID:
        if SIZES[size].world_size == world:
            source = Checkpoint(ours(out, f"{name}/hybrid"), engine_states=True, hybrid=True)
            jobs.append(_logits(out, name, size, source))
    for (name, size), options in HYBRID_FILES.items():
        if SIZES[size].world_size == world:
            source = Checkpoint(ours(out, f"{name}/hybrid"), hybrid=True)
            target = ranks(out, f"{name}/hybrid", size)
            settings = {**options, "sizes": SIZES[size]}
            jobs.append(SaveRanks(hf(out, name), target, source, **settings))
    return jobs


def _fused_jobs(out: Path, world: int) -> list[Job]:
    jobs: list[Job] = []
    for name, size in FUSED:
        if SIZES[size].world_size != world:
            continue
        if size == "tp1":
            jobs.append(
                Save(hf(out, name), Checkpoint(native(out, f"{name}/fused", size), fused=True))
            )
        source = Checkpoint(ours(out, name), fused=True)
        jobs.append(_logits(out, name, size, source))
        target = ranks(out, f"{name}/fused", size)
        settings = {"sizes": SIZES[size], "names": "local"}
        jobs.append(SaveRanks(hf(out, name), target, source, **settings))
    return jobs


def _logits(out: Path, name: str, size: str, source: Checkpoint) -> Logits:
    per_layer = source.layout == "per-layer"
    names, layout, multiple = SAVED[size]
    kind = name
    if per_layer or source.hybrid or source.fused:
        kind += "/per-layer" if per_layer else "/hybrid" if source.hybrid else "/fused"
    target = Checkpoint(
        saved(out, kind, size), names, layout, hybrid=source.hybrid, fused=source.fused
    )
    return Logits(
        hf(out, name),
        out / name / "reference.safetensors",
        logits(out, kind, size),
        SIZES[size],
        source,
        vocab_multiple=multiple,
        saved=None if per_layer else target,
    )
