"""``ckpt to-mcore``: a Hugging Face model becomes a megatron-core ``torch_dist`` checkpoint.

No model is built. Planning brings every tensor to its place in megatron-core's tensors and proves
that none is missing or left over; writing moves each byte once (:mod:`ckpt_tool.plans.mcore`).
"""

from __future__ import annotations

import re
from pathlib import Path

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.parallel import ALONE, Team, jobs_of, joined
from ckpt_tool.common.progress import NoProgress, Progress
from ckpt_tool.mapping.casting import cast_all, choose_dtype, require_dtype
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.hub.names import apply_family
from ckpt_tool.mapping.hub.value_head import refuse_value_head
from ckpt_tool.mapping.lora.names import refuse_adapters
from ckpt_tool.mapping.megatron.bindings import LAYOUTS as LAYERS
from ckpt_tool.mapping.megatron.convert import to_megatron
from ckpt_tool.mapping.megatron.extra_state import list_extra_states
from ckpt_tool.mapping.megatron.numbers import read_numbers, require_rows
from ckpt_tool.mapping.megatron.rules import Rules, make_rules
from ckpt_tool.mapping.quantised import dequantised, is_quantised
from ckpt_tool.operations.options import ToMcoreOptions
from ckpt_tool.operations.tied_head import find_tied_head
from ckpt_tool.plans.mcore import LAYOUTS, McorePlan
from ckpt_tool.plans.options import WriteResult
from ckpt_tool.plans.write import write
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, CASTABLE, DType
from ckpt_tool.tensors.equality import are_equal
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.torch_dist.layout import plan_torch_dist

#: What old files hold although the model computes it.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")


def convert_to_mcore(
    model: str | Path,
    out: str | Path,
    options: ToMcoreOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Write the Hugging Face model ``model`` as the megatron-core checkpoint ``out``.

    Under torchrun every process calls this and writes its share; the result is the same.
    Raises CheckpointError, MappingError, OutputError, UsageError or FormatError; ``out`` then
    does not exist, or is what it was.
    """
    options = options or ToMcoreOptions()
    with joined() as world:
        team = Team(world, jobs_of(options.jobs), progress or NoProgress())
        plan = world.each(lambda: plan_to_mcore(model, options))
        return write(plan, Path(out), options.write, team)


def plan_to_mcore(model: str | Path, options: ToMcoreOptions | None = None) -> McorePlan:
    """What :func:`convert_to_mcore` would write; writes nothing. Raises what it raises."""
    options = options or ToMcoreOptions()
    _require_choices(options)
    checkpoint = _open(model)
    config = load_config(Path(options.config or checkpoint.side_files or _no_config(checkpoint)))
    require_rows(config)
    refuse_adapters(checkpoint.entries)
    refuse_value_head(checkpoint.entries)
    dropped: dict[str, str] = {}
    tensors = _plain(checkpoint, config, options)
    _drop_head(checkpoint, config, tensors, dropped, jobs_of(options.jobs))
    for name in [name for name in tensors if _COMPUTED.search(name)]:
        dropped[name] = "computed from the config"
        tensors.pop(name)
    rules = make_rules(config, tensors, _layers(config, options), options.vocab_multiple)
    _drop_repeats(rules, tensors, dropped, jobs_of(options.jobs))
    _require_floats(tensors)
    tensors = _with_fixed_dtypes(rules, tensors)
    sharded = to_megatron(tensors, rules)
    objects = list_extra_states(rules.bindings)
    prefix = "release/" if options.layout == "megatron-lm" else ""
    folder = plan_torch_dist(sharded, objects, prefix=prefix, sums=options.sums)
    return McorePlan(
        checkpoint=checkpoint,
        rules=rules,
        layout=options.layout,
        model=tensors,
        files=folder.files,
        folder=folder,
        dropped=dropped,
        warnings=rules.warnings,
    )


def _layers(config: ModelConfig, options: ToMcoreOptions) -> str:
    """How layers are laid out; empty for megatron-core's own way.

    Megatron-LM's loader is told that layers have keys of their own, and then asks for those, be
    the run's ``--moe-layer-freq`` a number or a list; of a model with experts it could not know.
    """
    if not options.layers and options.layout == "megatron-lm" and read_numbers(config).experts:
        return "per-layer"
    return options.layers


def _require_choices(options: ToMcoreOptions) -> None:
    require_dtype(options.dtype)
    if options.layout not in LAYOUTS:
        raise UsageError(f"`layout={options.layout!r}`: expected one of {', '.join(LAYOUTS)}")
    if options.layers and options.layers not in LAYERS:
        raise UsageError(f"`layers={options.layers!r}`: expected one of {', '.join(LAYERS)}")
    if options.vocab_multiple < 1:
        raise UsageError(f"`vocab_multiple={options.vocab_multiple}`: expected 1 or more")


def _open(model: str | Path) -> Checkpoint:
    checkpoint = open_checkpoint(model)
    if checkpoint.format not in ("huggingface", "torch"):
        raise UsageError(
            f"{model}: a checkpoint of format {checkpoint.format}, not a Hugging Face model",
            hint="Make one of FSDP rank files first, with ckpt merge fsdp.",
        )
    checkpoint.require_sound()
    return checkpoint


def _no_config(checkpoint: Checkpoint) -> Path:
    raise UsageError(
        f"{checkpoint.path}: no config.json beside the weights",
        hint="Name a folder that has it with `config=DIR`.",
    )


def _plain(
    checkpoint: Checkpoint, config: ModelConfig, options: ToMcoreOptions
) -> dict[str, LazyTensor]:
    """The tensors by their names on the Hub, in the dtype that is written, fp8 scales applied."""
    tensors = dict(checkpoint)
    target = choose_dtype(options.dtype, config)
    if is_quantised(tensors):
        tensors = dequantised(tensors, config, _wide_dtype(options.dtype, target))
    tensors = apply_family(tensors, config) or tensors
    return cast_all(tensors, target, config)


def _wide_dtype(wanted: str, target: DType | None) -> DType:
    if wanted == "keep":
        raise UsageError(
            "`dtype='keep'`: Megatron does not load weights in block-quantised fp8",
            hint="Name the dtype they are to have: `dtype='bfloat16'`.",
        )
    return target or BFLOAT16


def _drop_head(
    checkpoint: Checkpoint,
    config: ModelConfig,
    tensors: dict[str, LazyTensor],
    dropped: dict[str, str],
    jobs: int,
) -> None:
    try:
        head = find_tied_head(checkpoint, config, None, Team(ALONE, jobs, NoProgress()))
    except MappingError as error:
        error.hint = "Megatron ties what config.json ties: set tie_word_embeddings to false there."
        raise
    if head.dropped:
        dropped[head.name] = f"equal to {head.embedding}, to which the config ties it"
        tensors.pop(head.name)


def _drop_repeats(
    rules: Rules, tensors: dict[str, LazyTensor], dropped: dict[str, str], jobs: int
) -> None:
    """Leave out what layers for multi-token prediction repeat of the model, where it is equal."""
    faults = []
    for repeat in rules.repeats:
        if repeat.hf not in tensors or repeat.of not in tensors:
            continue
        if are_equal(tensors[repeat.hf], tensors[repeat.of], jobs):
            dropped[repeat.hf] = f"equal to {repeat.of}, which Megatron uses in its place"
            tensors.pop(repeat.hf)
        else:
            faults.append(f"{repeat.hf}: differs from {repeat.of}")
    if faults:
        raise MappingError(
            "Megatron has one embedding and one head, this model has several that differ", faults
        )


def _require_floats(tensors: dict[str, LazyTensor]) -> None:
    faults = [f"{name}: {t.dtype}" for name, t in tensors.items() if t.dtype not in CASTABLE]
    if faults:
        raise MappingError(f"{len(faults)} weights are no floating-point numbers", faults)


def _with_fixed_dtypes(rules: Rules, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """What Megatron keeps in one dtype whatever the weights are, in that dtype."""
    fixed = {
        name: BY_NAME[binding.dtype]
        for binding in rules.bindings
        if binding.dtype
        for name in binding.hf
    }
    return {
        name: tensor.to(fixed[name]) if name in fixed else tensor
        for name, tensor in tensors.items()
    }
