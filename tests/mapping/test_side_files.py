"""What goes along with the weights, what does not, and in which form."""

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.side_files import SideFiles, gather_side_files, list_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


def write(folder: Path, **files: Any) -> Path:
    """A folder with a config and files; ``__`` of a name is its dot, ``___`` a slash."""
    for name, content in {"config__json": {"model_type": "llama"}, **files}.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def gather(folder: Path, *tokenizers: Path, quantised: bool = False) -> SideFiles:
    return gather_side_files(load_config(folder), [*tokenizers, folder], quantised=quantised)


def read(found: SideFiles, name: str) -> Any:
    return json.loads(dict(found.read())[name])


COPIED = """
tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json vocab.json merges.txt
added_tokens.json chat_template.jinja chat_template.json generation_config.json LICENSE
preprocessor_config.json processor_config.json video_preprocessor_config.json
modeling_own.py configuration_own.py additional_chat_templates/tool_use.jinja spk_dict.pt
""".split()
LEFT_OUT = """
config.json fsdp_config.json ckpt_manifest.json lora_train_meta.json README.md .gitattributes
.hidden.json model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json
pytorch_model.bin pytorch_model.bin.index.json training_args.bin optim_world_size_2_rank_0.pt
model_world_size_2_rank_0.pt rng_state.pth last.ckpt tf_model.h5 flax_model.msgpack model.gguf
model.onnx __0_0.distcp weights.npz weights.npy original/params.json
additional_chat_templates/.hidden additional_chat_templates/model.bin
adapter_config.json trainer_state.json trainer_log.jsonl training_args.json train_results.json
all_results.json optimizer.json scheduler.json rng_state_0.json run.log zero_to_fp32.py latest
zero_to_torch.py events.out.tfevents.17.host latest_checkpointed_iteration.txt
""".split()


def test_side_files_are_all_but_weights_and_what_is_written_anew(tmp_path):
    for name in COPIED + LEFT_OUT:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    found = list_files(tmp_path)
    assert found == {name: tmp_path / name for name in COPIED}


def test_files_that_promise_quantised_weights_stay_with_these_only(tmp_path):
    names = ["hf_quant_config.json", "quantize_config.json"]
    folder = write(tmp_path, hf_quant_config__json={}, quantize_config__json={}, a__json={})
    assert list(gather(folder, quantised=True).files) == ["a.json", *names]
    found = gather(folder)
    assert list(found.files) == ["a.json"]
    assert list(found.dropped) == names


def test_every_pointer_of_git_lfs_is_named(tmp_path):
    folder = write(tmp_path, tokenizer__json=POINTER, vocab__json=POINTER, merges__txt="a b")
    with pytest.raises(CheckpointError, match="2 of the files that go along") as refused:
        gather(folder)
    named = {Path(problem.where).name: problem.message for problem in refused.value.problems}
    assert named.keys() == {"tokenizer.json", "vocab.json"}
    assert all("a pointer of git-lfs" in said for said in named.values())
    assert "git lfs pull" in refused.value.hint


CODE = {"AutoConfig": "configuration_own.Own", "AutoModel": "sub.modeling.Own", "x": "a/b--c.D"}


def test_modules_that_auto_map_names_and_that_are_not_there_are_listed(tmp_path):
    write(
        tmp_path,
        config__json={"auto_map": CODE},
        tokenizer_config__json={"auto_map": {"AutoTokenizer": ["tok_slow.Own", None]}},
    )
    (config, tokenizer) = gather(tmp_path).warnings
    assert config.startswith("config.json: auto_map names configuration_own.py, sub/modeling.py,")
    assert tokenizer.startswith("tokenizer_config.json: auto_map names tok_slow.py,")


def test_folders_that_modules_are_in_come_along(tmp_path):
    write(
        tmp_path,
        config__json={"auto_map": CODE},
        configuration_own__py="x = 1",
        sub___modeling__py="from .other import *",
        sub___other__py="y = 2",
        sub___deep___more__json={},
        sub_____pycache_____other__pyc="",
        beside___not_named__py="",
    )
    found = gather(tmp_path)
    assert found.warnings == ()
    names = {"configuration_own.py", "sub/modeling.py", "sub/other.py", "sub/deep/more.json"}
    assert found.files.keys() == names


def test_folders_of_sentence_transformers_come_along_with_their_weights(tmp_path):
    rows = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../up"}, 3]
    write(
        tmp_path / "model",
        modules__json=rows,
        config_sentence_transformers__json={},
        **{"1_Pooling___config__json": {}, "2_Dense___model__safetensors": "weights"},
    )
    write(tmp_path / "up", secret__json={})
    assert sorted(gather(tmp_path / "model").files) == [
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "config_sentence_transformers.json",
        "modules.json",
    ]


@pytest.mark.parametrize("content", ['{"path": "x"}', '"text"', "[[]]"])
def test_a_file_of_that_name_that_is_something_else_is_copied(tmp_path, content):
    assert list(gather(write(tmp_path, modules__json=content)).files) == ["modules.json"]


def test_the_first_folder_with_a_tokenizer_has_all_of_it(tmp_path):
    base = write(tmp_path / "base", tokenizer__json={"v": 1}, vocab__json={}, a__json={})
    run = write(tmp_path / "run", tokenizer__json={"v": 2}, chat_template__jinja="{{ x }}")
    none = write(tmp_path / "none", chat_template__jinja="alone")
    found = gather(base, none, run)
    assert found.tokenizer == run
    assert found.files.keys() == {"a.json", "tokenizer.json", "chat_template.jinja"}
    assert read(found, "tokenizer.json") == {"v": 2}
    (said,) = found.warnings
    assert str(run) in said
    assert str(base) in said
    assert gather(base, base).warnings == ()
    assert (
        gather(base, write(tmp_path / "same", tokenizer__json={"v": 1}, vocab__json={})).warnings
        == ()
    )


def test_a_tokenizer_of_transformers_5_is_one_of_4_as_well(tmp_path):
    settings = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>", "<b>"]}
    found = gather(write(tmp_path, tokenizer__json={}, tokenizer_config__json=settings | {"ä": 1}))
    assert read(found, "tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>", "<b>"],
        "ä": 1,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"image": "<i>"}},
        {"additional_special_tokens": ["<a>"]},
        {},
    ],
    ids=str,
)
def test_what_both_read_is_copied_byte_for_byte(tmp_path, settings):
    folder = write(tmp_path, tokenizer__json={}, tokenizer_config__json=settings)
    found = gather(folder)
    assert found.files["tokenizer_config.json"] == folder / "tokenizer_config.json"


def test_parts_of_a_processor_get_files_of_their_own(tmp_path):
    processor = {
        "processor_class": "OwnProcessor",
        "image_processor": {"image_processor_type": "OwnImageProcessor", "patch_size": 4},
        "video_processor": {"fps": 2},
        "feature_extractor": {"sampling_rate": 16_000},
    }
    found = gather(write(tmp_path, processor_config__json=processor))
    assert read(found, "preprocessor_config.json") == {
        "processor_class": "OwnProcessor",
        "image_processor_type": "OwnImageProcessor",
        "patch_size": 4,
    }
    assert read(found, "video_preprocessor_config.json")["fps"] == 2
    assert read(found, "processor_config.json") == processor
    kept = gather(write(tmp_path, preprocessor_config__json={"mine": 1}))
    assert read(kept, "preprocessor_config.json") == {"mine": 1}
