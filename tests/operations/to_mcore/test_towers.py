"""Models that see or hear, whose language model Megatron has and whose towers are transformers'."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from ckpt_tool import (
    MappingError,
    MergeOptions,
    ToMcoreOptions,
    VerifyOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    open_checkpoint,
    verify_checkpoint,
)
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.mapping.megatron.convert import restore_model
from tests.real.fill import fill_distinct
from tests.support.every_class import build_tiny
from tests.support.merging import assert_same, load_folder
from tests.support.saved import assert_equal, write_tensors
from tests.support.tiny_models import build
from tests.support.versions import require_transformers_5

Tensors = dict[str, torch.Tensor]
UNSYNCED = WriteOptions(fsync=False, check_load=False)


@dataclass(frozen=True)
class Around:
    """A family by what is around its language model, which is of the model type ``kind``.

    ``towers``: prefixes on the Hub, and in Megatron where these are others. ``trunk`` and ``head``
    are before the names of the language model on the Hub. ``config``: where its config is.
    """

    kind: str
    towers: dict[str, str]
    trunk: str = "language_model.model."
    head: str = "language_model."
    outside: str = ""
    absent: tuple[str, ...] = ()
    config: tuple[str, ...] = ("text_config",)
    tensors: dict[str, str] = field(default_factory=dict)

    @property
    def others(self) -> tuple[str, ...]:
        return (*self.towers, *self.absent)


_PROJECTED = {"vision_tower.": "", "multi_modal_projector.": ""}
_SEES = {"trunk": "model.language_model.", "head": "", "towers": {"model.visual.": "visual."}}
_THINKER = {"trunk": "thinker.model.", "head": "thinker.", "outside": "thinker."}
_THINKING = {**_THINKER, "config": ("thinker_config", "text_config")}
_HEARS = {"thinker.audio_tower.": "thinker.audio_model."}
MODELS = {
    "mistral3": Around("ministral3", _PROJECTED),
    "qwen2_vl": Around("qwen2", {"visual.": ""}, trunk="model.", head=""),
    "glm4v": Around("glm4", **_SEES),
    "glm46v": Around("glm4", **_SEES),
    "glm4v_moe": Around("glm4_moe", **_SEES),
    "kimi_k25": Around("deepseek_v3", {"vision_tower.": "", "mm_projector.": ""}),
    "kimi_vl": Around("deepseek_v3", _PROJECTED),
    "internvl": Around("qwen2", _PROJECTED),
    "internvl_chat": Around("qwen3", {"vision_model.": "", "mlp1.": ""}, config=("llm_config",)),
    "ovis2_5": Around(
        "qwen3",
        {"visual_tokenizer.": "", "vte.": ""},
        trunk="llm.model.",
        head="llm.",
        config=("llm_config",),
    ),
    "llava_onevision1_5": Around("qwen3", {"visual.": ""}, trunk="model.", head=""),
    "minicpmv4_6": Around(
        "qwen3_5_text",
        {"model.vision_tower.": "vision_tower.", "model.merger.": "merger."},
        trunk="model.language_model.",
        head="",
    ),
    "qwen2_audio": Around("qwen2", {"audio_tower.": "", "multi_modal_projector.": ""}),
    "llama4": Around("llama4_text", {"vision_model.": "", "multi_modal_projector.": ""}),
    "qwen3_asr": Around("qwen3", _HEARS, **_THINKING),
    "qwen2_5_omni": Around(
        "qwen2",
        {"thinker.visual.": "", **_HEARS},
        absent=("talker.", "token2wav."),
        **_THINKING,
    ),
    "qwen3_omni_moe": Around(
        "qwen3_moe",
        {"thinker.visual.": "", **_HEARS},
        absent=("talker.", "code2wav."),
        **_THINKING,
    ),
}
#: Those of which transformers has a class that writes what is on the Hub.
BUILT = {
    "mistral3": "Mistral3ForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "glm4v": "Glm4vForConditionalGeneration",
    "glm4v_moe": "Glm4vMoeForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration",
}
every_family = pytest.mark.parametrize("family", MODELS)
every_class = pytest.mark.parametrize("family", BUILT)


def read(folder: Path) -> Tensors:
    return {name: tensor.read() for name, tensor in open_checkpoint(folder).items()}


def make_text(family: str, folder: Path) -> Path:
    """The language model alone, as a model of the family that it is of."""
    kind = MODELS[family].kind
    tiny = build_tiny(kind, TINY[kind]) if kind in TINY else build(_BUILDS.get(kind, kind))
    fill_distinct(tiny)
    tiny.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": kind}))
    return folder


_BUILDS = {"ministral3": "llama"}
TINY = {
    "glm4": "Glm4ForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
}


def make_whole(family: str, text: Path, folder: Path) -> Path:
    """A model on the Hub with that language model; of what is around it there is some."""
    around = MODELS[family]
    tensors = {
        (around.trunk if name.startswith("model.") else around.head)
        + name.removeprefix("model."): t
        for name, t in load_folder(text).items()
    }
    for at, prefix in enumerate(around.others):
        for name in ("blocks.0.attn.qkv.weight", "layers.0.linear_fc1.weight", "norm.bias"):
            size = torch.Size((6, 4) if name.endswith("weight") else (4,)).numel()
            shape = (6, 4) if name.endswith("weight") else (4,)
            tensors[prefix + name] = torch.arange(size).reshape(shape) + 100.0 * at
    inner = json.loads((text / "config.json").read_text())
    config = {"model_type": family, "tie_word_embeddings": False}
    part = config
    for key in around.config[:-1]:
        part[key] = part = {}
    part[around.config[-1]] = inner | ({"model_type": "glm4v_text"} if family == "glm4v" else {})
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def text(family: str, tmp_path: Path) -> Path:
    require_transformers_5()
    return make_text(family, tmp_path / "text")


@pytest.fixture
def model(family: str, text: Path, tmp_path: Path) -> Path:
    return make_whole(family, text, tmp_path / "hf")


def in_megatron(family: str, hub: Tensors) -> Tensors:
    """The towers by their names in Megatron."""
    return {
        (new or old) + name.removeprefix(old): tensor
        for old, new in MODELS[family].towers.items()
        for name, tensor in hub.items()
        if name.startswith(old)
    }


#: Those with tests of their own: what is around their language models is more than towers.
OWN_TESTS = {"gemma3", "gemma4", "gemma4_unified", "minimax_m3_vl", "step3p7"}
OWN_TESTS |= {"ernie4_5_vl_moe", "ernie4_5_moe_vl"}


def test_every_family_with_towers_is_here():
    with_towers = {n for n, f in FAMILIES.items() if f.megatron and f.megatron.around.towers}
    with_rows = {name for name in with_towers if FAMILIES[name].megatron.around.vision}
    assert MODELS.keys() == with_towers - with_rows - OWN_TESTS


@every_family
def test_the_towers_stay_and_the_language_model_is_that_of_its_family(
    model, text, family, tmp_path
):
    result = convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    convert_to_mcore(text, tmp_path / "other", ToMcoreOptions(write=UNSYNCED))
    around, hub = MODELS[family], load_folder(model)
    prefix = f"{around.outside}language_model."
    expected = {f"{prefix}{name}": tensor for name, tensor in read(tmp_path / "other").items()}
    assert_same(read(tmp_path / "out"), expected | in_megatron(family, hub))
    left = {name for name in hub if around.absent and name.startswith(around.absent)}
    assert result.dropped.keys() == left
    assert all("fill_from" in reason for reason in result.dropped.values())


@every_family
def test_there_and_back_is_the_identity(model, family, tmp_path):
    there = ToMcoreOptions(layers="per-layer", layout="megatron-lm", vocab_multiple=64)
    convert_to_mcore(model, tmp_path / "there", there)
    filled = model if MODELS[family].absent else None
    back = MergeOptions(config=model, write=UNSYNCED, fill_from=filled)
    result = merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(model))
    assert len(result.filled) == 3 * len(MODELS[family].absent)
    assert verify_checkpoint(tmp_path / "there", model, VerifyOptions(fill_from=filled)).equal


#: How others call what is around the language model: slime, and ms-swift.
SPELLED = {
    "slime": lambda around, hub: f"model.{around.towers[hub] or hub}",
    "ms-swift": lambda around, hub: f"visual.{hub.removeprefix('thinker.').removeprefix('model.')}",
    "wrapped": lambda around, hub: f"module.module.{around.towers[hub] or hub}",
}


@pytest.mark.parametrize("style", SPELLED)
@every_family
def test_towers_as_others_call_them(model, family, style, tmp_path):
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    around, found = MODELS[family], read(tmp_path / "out")
    for hub, own in around.towers.items():
        old, new = own or hub, SPELLED[style](around, hub)
        towers = [name for name in found if name.startswith(old)]
        found |= {new + name.removeprefix(old): found.pop(name) for name in towers}
    if style == "ms-swift":
        found = {name.removeprefix(around.outside): tensor for name, tensor in found.items()}
    restored = restore_model(write_tensors(tmp_path / "m.safetensors", found), load_config(model))
    hub = load_folder(model)
    absent = MODELS[family].absent
    expected = {n: t for n, t in hub.items() if not absent or not n.startswith(absent)}
    assert_equal(restored.tensors, expected)


@every_family
def test_a_tower_that_is_not_there_is_named(model, family, tmp_path):
    first = next(iter(MODELS[family].towers))
    rest = {name: t for name, t in load_folder(model).items() if not name.startswith(first)}
    save_file(rest, model / "model.safetensors")
    with pytest.raises(MappingError, match=f"{first}: none of their tensors is there"):
        convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))


@every_class
def test_what_the_class_writes_goes_there_and_back(family, tmp_path):
    require_transformers_5()
    built = build(family) if family == "mistral3" else build_tiny(family, BUILT[family])
    fill_distinct(built)
    built.save_pretrained(tmp_path / "hf")
    convert_to_mcore(tmp_path / "hf", tmp_path / "there", ToMcoreOptions(write=UNSYNCED))
    filled = tmp_path / "hf" if MODELS[family].absent else None
    checked = WriteOptions(fsync=False, check_load=True)
    back = MergeOptions(config=tmp_path / "hf", write=checked, fill_from=filled)
    merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(tmp_path / "hf"))
    kind = getattr(transformers, BUILT[family])
    _, report = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


#: A tower beside the language model, norms that megatron-core has not, and what has a name around
#: it; what is loaded of the others is what these are.
LOADED = ("mistral3", "glm4v", "qwen3_omni_moe")


@pytest.mark.real
@pytest.mark.parametrize("family", LOADED)
def test_megatron_core_loads_the_language_model(model, family, tmp_path):
    checked = WriteOptions(fsync=False, check_load=True)
    result = convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=checked))
    assert result.load_check.architecture == "GPTModel (without the tower)"
    prefix = f"{MODELS[family].outside}language_model."
    language = [name for name in open_checkpoint(tmp_path / "out") if name.startswith(prefix)]
    assert result.load_check.num_tensors == len(language)
