"""Which names on the Hub are those of layers for multi-token prediction."""

from pathlib import Path

import pytest

from ckpt_tool.mapping.config import MTP_KEYS, ModelConfig
from ckpt_tool.mapping.hub.ahead import list_ahead
from tests.support.megatron_models import MODELS, PREDICTING, config_of, hub_shapes


@pytest.mark.parametrize("family", PREDICTING)
def test_of_every_family_all_that_such_layers_have(family):
    none = dict.fromkeys(MODELS[family].config.keys() & MTP_KEYS, 0)
    ahead = hub_shapes(family).keys() - hub_shapes(family, **none).keys()
    found = {name for name in hub_shapes(family) if name.startswith(list_ahead(config_of(family)))}
    assert found == ahead != set()


@pytest.mark.parametrize("key", MTP_KEYS)
def test_by_whichever_key_the_config_says_how_many(key):
    starts = list_ahead(ModelConfig(Path("m"), {"num_hidden_layers": 3, key: 2}, {}))
    found = [n for n in range(9) if f"model.layers.{n}.eh_proj.weight".startswith(starts)]
    assert found == [3, 4]


@pytest.mark.parametrize("said", [{}, {MTP_KEYS[0]: 0}, {MTP_KEYS[1]: None}, {MTP_KEYS[0]: "2"}])
def test_none_that_the_config_does_not_say(said):
    assert not list_ahead(ModelConfig(Path("m"), {"num_hidden_layers": 3, **said}, {}))


@pytest.mark.parametrize(
    ("model_type", "trunk"),
    [("glm4v_moe", "model.language_model."), ("kimi_k25", "language_model.model.")],
)
def test_beside_a_tower_that_has_more_layers(model_type, trunk):
    text = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    starts = list_ahead(ModelConfig(Path("m"), {"model_type": model_type, "text_config": text}, {}))
    assert f"{trunk}layers.3.eh_proj.weight".startswith(starts)
    assert not f"{trunk}layers.2.mlp.gate.weight".startswith(starts)
    assert not "model.visual.layers.3.attn.qkv.weight".startswith(starts)
