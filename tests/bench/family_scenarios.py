"""``ckpt to-mcore`` and back: models of which more becomes than that it is moved.

Experts are turned, and gate and up of GPT-OSS's take turns; rows of DeltaNet go by head, and some
norms are added to; Mamba's inputs are apart. Each direction is held against ``cp + sync`` of the
model's files in bfloat16. What comes back has to be the model, bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.family_models import (
    gpt_oss_model,
    nemotron_model,
    qwen3_next_model,
    qwen3_vl_moe_model,
)
from tests.bench.generate_hf import Model, moe_model, write_model
from tests.bench.mcore_scenarios import MEMORY_BUDGET, TIME_BUDGET, TO_MCORE
from tests.bench.measure import Command, measure, run
from tests.bench.quantised_models import int4_model, mxfp4_model
from tests.bench.results import TOOL, Measurement, Result, Say, copies

BACK = "ckpt merge megatron"
_HELD = "cp + sync"


@dataclass(frozen=True)
class FamilyVariant:
    """A kind of model. ``make``: the one nearest to a number of bytes.

    ``quantised``: the same with weights of four bits, called ``format``.
    """

    name: str
    title: str
    make: Callable[[int], Model]
    quantised: Callable[[int], Model] | None = None
    format: str = ""


FAMILY_VARIANTS = (
    FamilyVariant("mcore-gptoss", "bf16 turned", gpt_oss_model, mxfp4_model, "MXFP4"),
    FamilyVariant("mcore-next", "bf16 gated", qwen3_next_model),
    FamilyVariant("mcore-vl-moe", "bf16 turned", qwen3_vl_moe_model),
    FamilyVariant("mcore-hybrid", "bf16 Mamba", nemotron_model),
    FamilyVariant("mcore-int4", "bf16 experts", moe_model, int4_model, "INT4"),
)


def bench_family(variant: FamilyVariant, size: int, repeat: int, folder: Path, say: Say) -> Result:
    """Generate, check, measure and delete a model of about ``size`` bytes.

    CommandError where anything fails, also where what comes back is not the model.
    """
    result = Result(variant.name, variant.title, TO_MCORE, MEMORY_BUDGET)
    say(f"{variant.name}: both ways on a tenth of the size")
    _bench_small(result, variant, size // 10, folder / "small")
    say(f"{variant.name}: generating the model")
    source, between, out = folder / "large", folder / "mcore", folder / "out"
    files = write_model(source, variant.make(size))
    result.input_bytes = sum(path.stat().st_size for path in files)
    run(_to_mcore(source, between))
    held = {TO_MCORE: _to_mcore(source, out)}
    inputs = [*files, *between.glob("*.distcp")]
    if variant.quantised is not None:
        inputs += write_model(folder / "packed", variant.quantised(size))
        held[f"{TO_MCORE}, {variant.format}"] = _to_mcore(folder / "packed", out)
    held[BACK] = _merge(between, source, out)
    commands = [Command(label, argv, out, result.input_bytes) for label, argv in held.items()]
    commands += copies(files, out, result.input_bytes)
    runs = measure(commands, inputs, repeat, lambda text: say(f"{variant.name}: {text}"))
    for label, found in runs.items():
        plain = Measurement(label, found)
        if label in held:
            plain = replace(plain, reference=_HELD, budget=TIME_BUDGET)
            plain = replace(plain, shows_memory=label != TO_MCORE)
        result.measurements.append(plain)
    for made in (source, between, folder / "packed"):
        shutil.rmtree(made, ignore_errors=True)
    return result


def _bench_small(result: Result, variant: FamilyVariant, size: int, folder: Path) -> None:
    """There and back the model has to be the same; memory here shows what grows with size."""
    source, between, out = folder / "in", folder / "mcore", folder / "out"
    for make in (variant.make, variant.quantised):
        if make is None:
            continue
        files = write_model(source, make(size))
        found = run(_to_mcore(source, between))
        run(_merge(between, source, out))
        run((*TOOL, "verify", str(out), str(source)))
        if make is variant.make:
            result.small_bytes = sum(path.stat().st_size for path in files)
            result.small_memory = found.anonymous
        shutil.rmtree(folder)


def _to_mcore(source: Path, out: Path) -> tuple[str, ...]:
    return (*TOOL, "to-mcore", str(source), str(out))


def _merge(source: Path, config: Path, out: Path) -> tuple[str, ...]:
    return (*TOOL, "merge", "megatron", str(source), str(out), "--config", str(config))
