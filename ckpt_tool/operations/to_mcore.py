"""``ckpt to-mcore``: a Hugging Face model becomes a megatron-core ``torch_dist`` checkpoint.

No model is built. Planning brings every tensor to its place in megatron-core's tensors and proves
that none is missing or left over; writing moves each byte once (:mod:`ckpt_tool.plans.mcore`).
"""

from __future__ import annotations

import shlex
from pathlib import Path

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.garbage import pause_collection
from ckpt_tool.common.parallel import Team, form_team_alone, join_team
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.wording import add_article
from ckpt_tool.mapping.casting import cast_as_told, choose_dtype, require_dtype
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.hub.value_head import refuse_value_head
from ckpt_tool.mapping.lora.names import refuse_adapters
from ckpt_tool.mapping.megatron.bindings import LAYOUTS as LAYERS
from ckpt_tool.mapping.megatron.convert import to_megatron
from ckpt_tool.mapping.megatron.extra_state import list_extra_states
from ckpt_tool.mapping.megatron.fixed_dtypes import hold_fixed
from ckpt_tool.mapping.megatron.integers import require_weights
from ckpt_tool.mapping.megatron.numbers import read_numbers, require_rows
from ckpt_tool.mapping.megatron.rounding import round_as_stored
from ckpt_tool.mapping.megatron.rules import Rules, make_rules
from ckpt_tool.mapping.megatron.towers import TOWERS
from ckpt_tool.operations.elsewhere import settle_out
from ckpt_tool.operations.hub_model import make_hub_model
from ckpt_tool.operations.options import ModelOptions, ToMcoreOptions
from ckpt_tool.operations.plain_model import drop_repeats, has_scales, make_plain
from ckpt_tool.operations.repositories import settle_repositories
from ckpt_tool.operations.request import Heads
from ckpt_tool.operations.source import (
    Source,
    is_adapter_of_peft,
    leave_out_training,
    list_roots,
)
from ckpt_tool.operations.tied_head import TiedHeadError
from ckpt_tool.plans.mcore import LAYOUTS, McorePlan
from ckpt_tool.plans.options import WriteResult
from ckpt_tool.plans.write import write
from ckpt_tool.readers import find_format, open_checkpoint
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.dtypes import BFLOAT16
from ckpt_tool.writers.torch_dist.layout import plan_torch_dist


def convert_to_mcore(
    model: str | Path,
    out: str | Path,
    options: ToMcoreOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Write the Hugging Face model ``model`` as the megatron-core checkpoint ``out``.

    Under torchrun every process calls this and writes its share; the result is the same.
    ``progress`` is told of bytes that are compared and written. Returns what was written, sizes in
    bytes. Raises CheckpointError, MappingError, OutputError, UsageError or FormatError; ``out``
    then does not exist, or is what it was.

    >>> import tempfile, json
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from ckpt_tool import convert_to_mcore
    >>> config = {"model_type": "mistral", "hidden_size": 4, "num_hidden_layers": 1,
    ...           "num_attention_heads": 2, "intermediate_size": 5, "vocab_size": 6,
    ...           "tie_word_embeddings": True, "torch_dtype": "float32"}
    >>> shapes = {"embed_tokens": (6, 4), "norm": (4,), "layers.0.input_layernorm": (4,),
    ...           "layers.0.post_attention_layernorm": (4,), "layers.0.mlp.gate_proj": (5, 4),
    ...           "layers.0.mlp.up_proj": (5, 4), "layers.0.mlp.down_proj": (4, 5)}
    >>> shapes |= {f"layers.0.self_attn.{part}_proj": (4, 4) for part in "qkvo"}
    >>> weights = {f"model.{name}.weight": np.ones(shapes[name], np.float32) for name in shapes}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
    ...     save_file(weights, f"{folder}/model.safetensors")
    ...     result = convert_to_mcore(folder, f"{folder}/mcore")
    ...     print(result.num_tensors, [file.name for file in result.files])
    8 ['__0_0.distcp']
    """
    options = options or ToMcoreOptions()
    place = settle_out(out, options.write, is_megatron=True)
    with join_team(options.jobs, progress) as team:
        return write(plan_to_mcore(model, options, team), place, options.write, team)


@pause_collection()
def plan_to_mcore(
    model: str | Path, options: ToMcoreOptions | None = None, team: Team | None = None
) -> McorePlan:
    """What :func:`convert_to_mcore` would write; writes nothing. Raises what it raises."""
    asked = options or ToMcoreOptions()
    _require_choices(asked)
    team = team or form_team_alone(asked.jobs)
    options = team.world.each(lambda: settle_repositories(asked))
    checkpoint = team.world.each(lambda: _open(model, team.progress))
    team.progress.start("planning", None)
    config = team.world.each(lambda: _find_config(checkpoint, options))
    found = _name(checkpoint, config, team)
    plain = team.world.each(lambda: _make_plain(found, config, options))
    rules = team.world.each(lambda: _make_rules(plain, config, options))
    whole = drop_repeats(plain, rules, team)
    team.progress.start("planning files", None)
    return team.world.each(lambda: _plan_files(checkpoint, whole, rules, options))


def _plan_files(
    checkpoint: Checkpoint, model: HubModel, rules: Rules, options: ToMcoreOptions
) -> McorePlan:
    """The plan for a model by its names on the Hub, each tensor in the dtype that is written."""
    require_weights(model.tensors, rules.bindings)
    config, target = rules.config, choose_dtype(options.dtype, rules.config)
    fixed = hold_fixed(model.tensors, require_rows(config))
    tensors = cast_as_told(model.tensors, target, config, fixed)
    tiled = to_megatron(tensors, rules)
    objects = list_extra_states(rules.bindings, hybrid=rules.layout == "hybrid")
    prefix = "release/" if options.layout == "megatron-lm" else ""
    folder = plan_torch_dist(tiled, objects, prefix=prefix, sums=options.sums)
    return McorePlan(
        checkpoint=checkpoint,
        rules=rules,
        layout=options.layout,
        model=round_as_stored(tensors, rules.bindings),
        files=folder.files,
        folder=folder,
        dropped=model.dropped,
        tied=model.tied,
        warnings=[*model.warnings, *rules.warnings],
    )


def _make_rules(model: HubModel, config: ModelConfig, options: ToMcoreOptions) -> Rules:
    layers = _layers(config, options)
    return make_rules(config, model.tensors, layers, options.vocab_multiple, options.tower)


def _layers(config: ModelConfig, options: ToMcoreOptions) -> str:
    """How layers are laid out; empty for megatron-core's own way.

    Megatron-LM's loader is told that layers have keys of their own, and then asks for those, be
    the run's ``--moe-layer-freq`` a number or a list; of a model with experts it could not know.
    """
    if options.layout == "megatron-lm" and "streams" in require_rows(config).flags:
        raise MappingError(
            f"`layout='megatron-lm'`: no released Megatron-LM has a {config.model_type}"
        )
    if options.layers or options.layout != "megatron-lm" or require_rows(config).is_patterned:
        return options.layers
    return "per-layer" if read_numbers(config).experts else ""


def _require_choices(options: ToMcoreOptions) -> None:
    require_dtype(options.dtype)
    if options.layout not in LAYOUTS:
        raise UsageError(f"`layout={options.layout!r}`: expected one of {', '.join(LAYOUTS)}")
    if options.layers and options.layers not in LAYERS:
        raise UsageError(f"`layers={options.layers!r}`: expected one of {', '.join(LAYERS)}")
    if options.tower and options.tower not in TOWERS:
        raise UsageError(f"`tower={options.tower!r}`: expected one of {', '.join(TOWERS)}")
    if options.vocab_multiple < 1:
        raise UsageError(f"`vocab_multiple={options.vocab_multiple}`: expected 1 or more")


def _open(model: str | Path, progress: Progress) -> Checkpoint:
    checkpoint = leave_out_training(open_checkpoint(model, progress=progress))
    if checkpoint.format not in ("huggingface", "torch"):
        row, named = find_format(checkpoint.format), shlex.quote(str(model))
        first = f"Make one of it first: ckpt merge {named} MODEL, then: ckpt to-mcore MODEL OUT"
        raise UsageError(
            f"{model}: this is {add_article(row.title)}, not a Hugging Face model",
            hint=first if row.merge_command else f"See what it is with: ckpt inspect {named}",
        )
    checkpoint.require_sound()
    return checkpoint


def _find_config(checkpoint: Checkpoint, options: ToMcoreOptions) -> ModelConfig:
    """The config of a model that Megatron has and can take; UsageError or MappingError if not."""
    folder = options.config or checkpoint.side_files
    if folder is None and is_adapter_of_peft(checkpoint):
        raise UsageError(
            f"{checkpoint.path}: LoRA adapters alone, without their model",
            hint="Fuse them into the model that they were trained on with ckpt merge, then: ckpt"
            " to-mcore MODEL OUT",
        )
    if folder is None:
        raise UsageError(
            f"{checkpoint.path}: no config.json beside the weights",
            hint="Name a folder that has it with `config=DIR`.",
        )
    named = list_roots(checkpoint) if options.config is None else [Path(options.config)]
    config = load_config(Path(folder), named)
    require_rows(config)
    refuse_adapters(checkpoint.entries)
    refuse_value_head(checkpoint.entries)
    return config


def _name(checkpoint: Checkpoint, config: ModelConfig, team: Team) -> HubModel:
    """The model under its names on the Hub, without a head that repeats the embedding."""
    try:
        return make_hub_model(Source(checkpoint), config, ModelOptions(), team, Heads())
    except TiedHeadError as error:
        error.hint = "Megatron ties what config.json ties: set tie_word_embeddings to false there."
        raise


def _make_plain(model: HubModel, config: ModelConfig, options: ToMcoreOptions) -> HubModel:
    if options.dtype == "keep" and has_scales(model.tensors):
        raise UsageError(
            "`dtype='keep'`: Megatron does not load quantised weights",
            hint="Name the dtype they are to have: `dtype='bfloat16'`.",
        )
    return make_plain(model, config, choose_dtype(options.dtype, config) or BFLOAT16)
