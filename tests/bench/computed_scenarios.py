"""What is computed while it is written, against the same bytes that are only moved.

- ``lora``: ``ckpt merge fsdp`` of a model with adapters on every linear layer, which are fused,
  against the merge of the same model without them;
- ``fp8``: ``ckpt to-mcore`` of a model whose linear layers are fp8 with scales, which become
  bfloat16, against that of a model which has them so. The sizes are those of the output.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench.generate import Spec, generate, spec_of_size
from tests.bench.generate_hf import dense_model, write_model
from tests.bench.measure import Command, Runs, measure, run
from tests.bench.quantised_models import fp8_model
from tests.bench.results import TOOL, Measurement, Result, Say, copies

_RANK = 32
#: Most weights of a large model are those of linear layers: so the vocabulary is a small one.
_VOCABULARY = 1 << 14
_LORA, _PLAIN = "ckpt merge fsdp, fusing", "no adapters"
_LORA_BUDGET = 1.5
_FP8, _BF16 = "ckpt to-mcore, fp8", "bf16 source"
#: Bytes of output per second, at least.
_FP8_RATE = 1e9
_LORA_MEMORY, _FP8_MEMORY = 96 << 20, 256 << 20


def bench_lora(size: int, repeat: int, folder: Path, say: Say) -> Result:
    """Generate, measure and delete a checkpoint of about ``size`` bytes, and one with adapters.

    CommandError or subprocess.CalledProcessError where anything fails.
    """
    result = Result("lora", f"bf16, rank {_RANK}", _LORA, _LORA_MEMORY)
    plain = _small_vocabulary(size)
    say("lora: generating both checkpoints")
    result.small_bytes, result.small_memory = _fuse_small(size // 10, folder / "small")
    files = generate(folder / "fuse", replace(plain, lora_rank=_RANK))
    others = generate(folder / "plain", plain)
    result.input_bytes = sum(path.stat().st_size for path in others)
    out = folder / "out"
    fuse, merge = _merge(folder / "fuse", out), _merge(folder / "plain", out)
    held = {
        _LORA: (fuse, Measurement(_LORA, Runs(), _PLAIN, _LORA_BUDGET)),
        _PLAIN: (merge, Measurement(_PLAIN, Runs(), "cp + sync")),
    }
    _measure(result, held, (files, others), repeat, say)
    shutil.rmtree(folder / "fuse")
    shutil.rmtree(folder / "plain")
    return result


def bench_fp8(size: int, repeat: int, folder: Path, say: Say) -> Result:
    """The same of models of ``size`` bytes in bfloat16: one of these, and one in fp8."""
    result = Result("fp8", "bf16 of fp8", _FP8, _FP8_MEMORY)
    say("fp8: generating both models")
    small = write_model(folder / "small", fp8_model(size // 10))
    result.small_bytes = 2 * sum(path.stat().st_size for path in small)
    result.small_memory = run(_to_mcore(folder / "small", folder / "out")).anonymous
    shutil.rmtree(folder / "small")
    shutil.rmtree(folder / "out")
    files = write_model(folder / "fp8", fp8_model(size))
    others = write_model(folder / "bf16", dense_model(size))
    result.input_bytes = sum(path.stat().st_size for path in others)
    out = folder / "out"
    limit = result.input_bytes / _FP8_RATE
    held = {
        _FP8: (_to_mcore(folder / "fp8", out), Measurement(_FP8, Runs(), _BF16, limit=limit)),
        _BF16: (_to_mcore(folder / "bf16", out), Measurement(_BF16, Runs(), "cp + sync")),
    }
    _measure(result, held, (files, others), repeat, say)
    shutil.rmtree(folder / "fp8")
    shutil.rmtree(folder / "bf16")
    return result


def _measure(
    result: Result,
    held: Mapping[str, tuple[tuple[str, ...], Measurement]],
    files: tuple[Sequence[Path], Sequence[Path]],
    repeat: int,
    say: Say,
) -> None:
    """The runs of what is held against something, and of ``cp`` of the second ones of ``files``."""
    size, out = result.input_bytes, files[1][0].parent.parent / "out"
    commands = [Command(label, argv, out, size) for label, (argv, _) in held.items()]
    commands += copies(files[1], out, size)
    inputs = [path for some in files for path in some]
    runs = measure(commands, inputs, repeat, lambda text: say(f"{result.name}: {text}"))
    for label, found in runs.items():
        said = held[label][1] if label in held else Measurement(label, found)
        result.measurements.append(replace(said, runs=found))


def _small_vocabulary(size: int) -> Spec:
    """The model nearest to ``size`` bytes with this vocabulary; at least one layer."""
    spec = replace(spec_of_size(size, "bfloat16", 0), vocabulary=_VOCABULARY)
    empty, one = (replace(spec, num_layers=number).nbytes for number in (0, 1))
    return replace(spec, num_layers=max(1, round((size - empty) / (one - empty))))


def _fuse_small(size: int, folder: Path) -> tuple[int, int]:
    """The size of a small checkpoint, and the memory that fusing it takes."""
    files = generate(folder / "in", replace(_small_vocabulary(size), lora_rank=_RANK))
    found = run((*_merge(folder / "in", folder / "out"), "--no-check-load"))
    total = sum(path.stat().st_size for path in files)
    shutil.rmtree(folder)
    return total, found.anonymous


def _merge(source: Path, out: Path) -> tuple[str, ...]:
    return (*TOOL, "merge", "fsdp", str(source), str(out), "--dtype", "keep")


def _to_mcore(source: Path, out: Path) -> tuple[str, ...]:
    return (*TOOL, "to-mcore", str(source), str(out))
