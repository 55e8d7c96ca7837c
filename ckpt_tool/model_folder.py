"""Writing a planned Hugging Face model folder: weights, side files, config, manifest, checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ckpt_tool.check_load import LoadCheck, check_views
from ckpt_tool.errors import UsageError
from ckpt_tool.mapping.transformers_tables import View
from ckpt_tool.output import WriteOptions, WriteResult, json_bytes
from ckpt_tool.parallel import Team
from ckpt_tool.plan import MANIFEST_NAME, ModelPlan, manifest
from ckpt_tool.publish import Steps, real_path, write_plan
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.huggingface import open_huggingface
from ckpt_tool.writers.huggingface import INDEX_NAME, index_json
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
    if not options.check_load:
        return None
    if plan.config is None:
        raise UsageError("--check-load needs a config: it cannot go with --config none")
    shapes = {name: tensor.shape for name, tensor in plan.tensors.items()}
    return check_views(plan.views or (View(plan.config, frozenset()),), shapes)


def write_model(plan: ModelPlan, out: Path, options: WriteOptions, team: Team) -> WriteResult:
    """Write ``plan`` to ``out``, which appears complete or not at all.

    Every process of the team writes its share of the files. Raises OutputError where one cannot
    be written, MappingError where ``check_load`` finds that the model does not open. When reading
    back finds a difference nothing is published, and the result lists the tensors.
    """
    out = real_path(out)
    steps = Steps(
        check=lambda: check_plan(plan, out, options),
        small_files=lambda written: _small_files(plan, written),
        read_back=_read_back,
    )
    return write_plan(plan, steps, out, options, team)


def _small_files(plan: ModelPlan, written: list[WrittenFile]) -> Iterator[tuple[str, bytes]]:
    """Side files, manifest, index and config: in this order, the config completes the folder."""
    if plan.config is not None:
        for name, path in plan.config.side_files().items():
            yield name, path.read_bytes()
    source = manifest(plan.checkpoint, plan.casts(), plan.dropped, written)
    yield MANIFEST_NAME, json_bytes(source)
    index = index_json(plan.files)
    if index is not None:
        yield INDEX_NAME, index
    if plan.config is not None:
        yield "config.json", plan.config.to_bytes()


def _read_back(folder: Path) -> Checkpoint:
    result = open_huggingface(folder)
    result.require_sound()
    return result
