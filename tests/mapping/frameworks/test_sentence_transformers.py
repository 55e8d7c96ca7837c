"""Names of sentence-transformers, and what of them is the model."""

import pytest

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.frameworks.sentence_transformers import take_transformer


@pytest.mark.parametrize("start", ["0.auto_model.", "0.model.", "model.0.auto_model."])
def test_the_transformer_has_its_own_names(start):
    found = take_transformer({f"{start}embeddings.weight": 1, f"{start}layer.0.weight": 2})
    assert found == {"embeddings.weight": 1, "layer.0.weight": 2}


@pytest.mark.parametrize(
    "names", [["model.layers.0.w", "0.model.w"], ["0.w", "1.w"], ["0.auto_model_x.w"], []]
)
def test_other_names_are_left_alone(names):
    assert take_transformer(dict.fromkeys(names)) == dict.fromkeys(names)


def test_other_modules_are_named():
    with pytest.raises(MappingError, match="1 tensor of modules") as error:
        take_transformer(dict.fromkeys(["0.auto_model.w", "2.linear.weight"]))
    assert error.value.names == ("2.linear.weight",)
