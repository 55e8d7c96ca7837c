"""Writing a planned Hugging Face model folder: weights, side files, config, manifest, checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.mapping.hub.form import View
from ckpt_tool.mapping.lora.settings import CONFIG
from ckpt_tool.plans.checks.transformers import LoadCheck, check_views
from ckpt_tool.plans.finished import finished_files
from ckpt_tool.plans.output import WriteOptions, WriteResult, json_bytes
from ckpt_tool.plans.plan import MANIFEST_NAME, ModelPlan, manifest
from ckpt_tool.plans.write import Steps, already_written, real_path, write_plan
from ckpt_tool.readers.huggingface import open_sound_model
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.safetensors import ADAPTER_NAME, INDEX_NAME, index_json
from ckpt_tool.writers.staging import check_space, check_target
from ckpt_tool.writers.stream import WrittenFile


def check_plan(plan: ModelPlan, out: Path, options: WriteOptions) -> LoadCheck | None:
    """Everything that can be refused before a byte is written.

    OutputError unless ``out`` may be written and there is room; with ``check_load`` MappingError
    unless transformers wants exactly these tensors.
    """
    protected = [Path(file.path) for file in plan.checkpoint.files]
    if plan.config is not None:
        protected.append(plan.config.folder)
    check_target(out, replace=options.overwrite, protected=protected)
    check_space(out, plan.total_bytes)
    return _check_load(plan, options)


def _check_load(plan: ModelPlan, options: WriteOptions) -> LoadCheck | None:
    if not options.check_load:
        return None
    if plan.config is None:
        raise UsageError("--check-load needs a config: it cannot go with --config none")
    shapes = {name: tensor.shape for name, tensor in plan.model.items()}
    return check_views(plan.views or (View(plan.config, frozenset()),), shapes)


def write_model(plan: ModelPlan, out: Path, options: WriteOptions, team: Team) -> WriteResult:
    """Write ``plan`` to ``out``, which appears complete or not at all.

    Every process of the team writes its share of the files. Raises OutputError where one cannot
    be written, MappingError where ``check_load`` finds that the model does not open. When reading
    back finds a difference nothing is published, and the result lists the tensors. With ``resume``
    nothing is written where ``out`` is what this plan would write.
    """
    out = real_path(out)
    steps = Steps(
        check=lambda: check_plan(plan, out, options),
        small_files=lambda written: _small_files(plan, written),
        read_back=lambda folder: _read_back(plan, folder),
    )
    there = replace(
        steps,
        check=lambda: _check_load(plan, options),
        find=lambda: finished_files(out, plan.files, steps.small_files, team.progress),
    )
    found = already_written(plan, there, out, options, team)
    result = found or write_plan(plan, steps, out, options, team)
    return replace(result, lora=plan.lora)


def _small_files(plan: ModelPlan, written: list[WrittenFile]) -> Iterator[tuple[str, bytes]]:
    """Side files, manifest, index and config: in this order, the config completes the folder."""
    if plan.config is not None:
        for name, path in plan.config.side_files().items():
            yield name, path.read_bytes()
    if plan.adapter is not None:
        yield plan.adapter.path(CONFIG), json_bytes(plan.adapter.config)
    source = manifest(plan.checkpoint, plan.casts(), plan.dropped, written, plan.lora)
    yield MANIFEST_NAME, json_bytes(source | {"plan": plan.mark})
    index = index_json([file for file in plan.files if not file.name.endswith(ADAPTER_NAME)])
    if index is not None:
        yield INDEX_NAME, index
    if plan.config is not None:
        yield "config.json", plan.config.to_bytes()


def _read_back(plan: ModelPlan, folder: Path) -> dict[str, LazyTensor]:
    """What is in the files, the adapter's with the names that it has in the plan."""
    found: dict[str, LazyTensor] = {}
    if plan.model:
        found |= open_sound_model(folder)
    if plan.adapter is not None:
        beside = open_sound_model(folder / plan.adapter.folder)
        found |= {plan.adapter.path(name): tensor for name, tensor in beside.items()}
    return found
