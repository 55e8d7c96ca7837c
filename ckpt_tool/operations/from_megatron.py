"""``ckpt merge megatron``: a megatron-core checkpoint becomes a Hugging Face model folder.

No model is built and no process group is needed: the family's table, which ``to-mcore`` uses
forwards, says which part of which tensor each of Hugging Face's is.
"""

from __future__ import annotations

from pathlib import Path

from ckpt_tool.common.errors import (
    CheckpointError,
    FormatError,
    MappingError,
    UnsafeContentError,
    UsageError,
)
from ckpt_tool.common.jobs import jobs_of
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.wording import plural
from ckpt_tool.mapping.frameworks.training import is_training_state
from ckpt_tool.mapping.hub.names import unknown_class, with_architecture
from ckpt_tool.mapping.hub.transformers_tables import HubForm
from ckpt_tool.mapping.hub.value_head import as_value_model
from ckpt_tool.mapping.megatron.keys import is_megatron
from ckpt_tool.mapping.megatron.model import Model
from ckpt_tool.operations.lora import base_config, refuse_options
from ckpt_tool.operations.lora_megatron import resolve_megatron
from ckpt_tool.operations.merge import (
    MergeOptions,
    config_of,
    finish_plan,
    opened,
    team_of,
    without_tied_head,
    write_planned,
)
from ckpt_tool.operations.proofs import prove_replicas
from ckpt_tool.operations.training_state import left_out
from ckpt_tool.plans.output import WriteResult
from ckpt_tool.plans.plan import ModelPlan
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.find import config_near
from ckpt_tool.readers.huggingface import is_model_folder

#: Formats that hold megatron-core's tensors; a plain DCP folder may, if it lost metadata.json.
_FORMATS = ("torch_dist", "megatron-ranks", "dcp")
_OTHERS = {
    "fsdp": "Merge FSDP rank files with: ckpt merge fsdp",
    "huggingface": "This is a Hugging Face model already: there is nothing to merge.",
}


def merge_megatron(
    path: str | Path,
    out: str | Path,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Merge the megatron-core checkpoint at ``path`` into the Hugging Face folder ``out``.

    Under torchrun every process calls this and writes its share; the result is the same.
    Raises CheckpointError, MappingError, OutputError, UsageError or FormatError; ``out`` then
    does not exist, or is what it was.
    """
    options = options or MergeOptions()
    return write_planned(
        lambda team: plan_megatron(path, options, team), Path(out), options, progress
    )


def plan_megatron(
    path: str | Path, options: MergeOptions | None = None, team: Team | None = None
) -> ModelPlan:
    """What :func:`merge_megatron` would write; writes nothing. Raises what it raises."""
    options = options or MergeOptions()
    team = team or team_of(options)
    checkpoint = team.world.each(lambda: opened(open_megatron(path), options))
    prove_replicas(checkpoint, False, team)
    return team.world.each(lambda: _plan(checkpoint, options))


def open_megatron(path: str | Path) -> Checkpoint:
    """The checkpoint, its optimizer state left alone; UsageError where it is none of Megatron's."""
    try:
        checkpoint = open_checkpoint(path, lambda name: not is_training_state(name))
    except UnsafeContentError:
        raise
    except FormatError as error:
        error.hint = _weights_beside(config_near(Path(path))) or error.hint
        raise
    if checkpoint.format not in _FORMATS:
        raise UsageError(
            f"{path}: a checkpoint of format {checkpoint.format}, not of Megatron",
            hint=_OTHERS.get(checkpoint.format, f"See what it is with: ckpt inspect {path}"),
        )
    if not checkpoint.entries:
        if not checkpoint.problems:
            _refuse_without_weights(checkpoint)
    elif checkpoint.format == "dcp":
        _refuse_other_dcp(checkpoint)
    return checkpoint


def _refuse_without_weights(checkpoint: Checkpoint) -> None:
    """CheckpointError that says what is there, and where the weights may be."""
    held = plural(len(checkpoint.left_out), "tensor") + " of an optimizer's state"
    if not checkpoint.left_out:
        held = "no tensor"
    hint = _weights_beside(checkpoint.side_files) or (
        "A run that saves weights leaves them in another folder, or under another step."
    )
    for folder in (checkpoint.path.parent, checkpoint.path.parent.parent):
        if (folder / "model" / "dist_ckpt").is_dir():
            hint = f"The weights are in {folder / 'model'}: name {folder} instead."
    raise CheckpointError(f"{checkpoint.path}: {held}, and no weights of a model", hint=hint)


def _weights_beside(folder: Path | None) -> str:
    """Where verl with mbridge has the weights, if it is here; empty otherwise."""
    if folder is None or not is_model_folder(folder):
        return ""
    return (
        f"The weights are in {folder}, as a Hugging Face model already: verl with mbridge saves"
        " them there. There is nothing to merge."
    )


def _refuse_other_dcp(checkpoint: Checkpoint) -> None:
    if any(name.startswith("model.module.") for name in checkpoint.entries):
        raise MappingError(
            f"{checkpoint.path}: a checkpoint of Megatron-FSDP (--ckpt-format fsdp_dtensor), which"
            " is not supported yet",
            hint="Have Megatron-LM convert it: load it, and save with --ckpt-format torch_dist.",
        )
    if not is_megatron(checkpoint.entries):
        raise UsageError(
            f"{checkpoint.path}: a folder of torch.distributed.checkpoint whose tensors are not"
            " named as megatron-core names them",
            hint=f"Merge tensors with plain names with: ckpt merge dcp {checkpoint.path} OUT",
        )


def _plan(checkpoint: Checkpoint, options: MergeOptions) -> ModelPlan:
    config = None if options.config or options.keep_names else base_config(options.lora)
    config = config or config_of(checkpoint, options)
    dropped = left_out(checkpoint)
    if config is None:
        refuse_options(checkpoint, options.lora)
        return finish_plan(checkpoint, HubForm(dict(checkpoint), None, []), options, dropped)
    tie = options.tie_word_embeddings or None
    found, model = resolve_megatron(checkpoint, options.lora, config, jobs_of(options.jobs), tie)
    checkpoint = found.with_base(checkpoint)
    if found.files is not None and not found.files.folder:
        return finish_plan(checkpoint, HubForm({}, None, []), options, dropped, found)
    tensors, tied, also = without_tied_head(model.tensors, config, options)
    config = with_architecture(tensors, config.with_tied(tied))
    dropped |= also | _padding_text(model)
    form = HubForm(tensors | model.repeats, config, unknown_class(config))
    form, _ = as_value_model(form, {}, options.value_model)
    return finish_plan(checkpoint, form, options, dropped, found)


def _padding_text(model: Model) -> dict[str, str]:
    vocab = model.rules.numbers.vocab_size
    return {
        f"{name}[{vocab}:{vocab + rows}]": f"{plural(rows, 'row')} of padding: the"
        f" vocabulary has {vocab} by config.json"
        for name, rows in model.padding.items()
    }
