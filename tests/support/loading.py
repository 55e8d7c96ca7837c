"""The load check by itself, of a config and shapes."""

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import View
from ckpt_tool.plans.checks.question import Question
from ckpt_tool.plans.checks.transformers import TransformersJudge
from ckpt_tool.plans.options import LoadCheck

Shapes = dict[str, tuple[int, ...]]


def check_load(config: ModelConfig, planned: Shapes) -> LoadCheck:
    """What ``write.check_load`` says of tensors of these names and shapes, and raises."""
    judge = TransformersJudge([Question.of(View(config, frozenset()), planned)], {}, must=True)
    judge.start()
    verdict = judge.finish(None)
    assert verdict.check is not None
    assert verdict.warnings == ()
    return verdict.check
