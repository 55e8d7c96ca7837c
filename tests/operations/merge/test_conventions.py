"""Every way in which trainers leave a model, with every family: it opens, with the same weights."""

from collections.abc import Callable

import pytest
import torch
from transformers.utils import logging

from ckpt_tool.operations.merge import Job, merge
from tests.support.conventions import CONVENTIONS, Model
from tests.support.merging import load_folder
from tests.support.tiny_models import MODELS, build
from tests.support.versions import TRANSFORMERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="transformers 4 has no tables of names"),
    pytest.mark.filterwarnings("ignore"),
]
TIED = {"tie_word_embeddings": True}
TEXT = MODELS["qwen3_vl"].settings["text_config"]
#: Dense, tied, with experts of each form on the Hub, multimodal, with a head of another name.
FAMILIES = {
    **{name: (name, {}) for name in (
        "llama", "qwen3", "gemma3_text", "phi3", "gpt2", "gpt_neox", "gpt_oss", "qwen3_moe",
        "mixtral", "deepseek_v3", "glm4_moe", "qwen3_next", "granitemoe", "jamba", "ernie4_5_moe",
        "qwen3_5_moe_text", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "gemma3", "llava",
    )},
    "qwen2, tied": ("qwen2", TIED),
    "gpt2, tied": ("gpt2", TIED),
    "qwen3_vl, tied": ("qwen3_vl", TIED | {"text_config": TEXT | TIED}),
}  # fmt: skip
Get = Callable[[str], Model]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory) -> Get:
    """The model of a family, made once."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            family, settings = FAMILIES[name]
            made[name] = Model.of(build(family, **settings), tmp_path_factory.mktemp("saved"))
        return made[name]

    return get


@pytest.mark.parametrize("convention", list(CONVENTIONS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_it_opens_with_the_weights_that_were_left(family, convention, model_of, tmp_path):
    model = model_of(family)
    left = CONVENTIONS[convention](model, tmp_path / "in")
    if left is None:
        pytest.skip("not a way in which this model is left")
    merge(Job(left.source, tmp_path / "out", left.kind), left.options)
    held = {tensor.dtype for tensor in load_folder(tmp_path / "out").values()}
    assert left.dtype in held
    assert held <= {left.dtype, torch.float32}
    opened, report = type(model.made).from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=left.dtype
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, found = left.state or model.state, opened.state_dict()
    assert found.keys() == expected.keys()
    differing = [n for n, t in expected.items() if not torch.equal(found[n].to(t.dtype), t)]
    assert not differing


def test_the_table_is_as_wide_as_it_says():
    assert len(CONVENTIONS) >= 29
    assert len(FAMILIES) >= 18
