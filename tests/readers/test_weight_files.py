"""Which files of a folder are the model: those that transformers would load."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool.readers import open_checkpoint
from tests.support.versions import needs_transformers_5

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 10,
    "tie_word_embeddings": False,
}
_OF = "model.layers.0."
SHAPES = {"model.embed_tokens.weight": (10, 8), "model.norm.weight": (8,)}
SHAPES |= {"lm_head.weight": (10, 8), f"{_OF}mlp.down_proj.weight": (8, 6)}
SHAPES |= {f"{_OF}{n}_layernorm.weight": (8,) for n in ("input", "post_attention")}
SHAPES |= {f"{_OF}mlp.{n}_proj.weight": (6, 8) for n in ("gate", "up")}
SHAPES |= {f"{_OF}self_attn.{n}_proj.weight": (8, 8) for n in "qkvo"}

WHOLE, BIN = "model.safetensors", "pytorch_model.bin"
#: What lies in a folder: a file of all weights, `set N` of files, `index N` over such a set.
Parts = tuple[str, ...]
#: Of each combination: the file or set that transformers 5 loads, and what is said of the rest.
CHOSEN: dict[Parts, tuple[str, tuple[str, ...]]] = {
    ("whole",): ("whole", ()),
    ("whole", "index 2"): ("whole", ("names model-00001-of-00002",)),
    ("whole", "index 2", "set 2"): ("whole", ("names model-0", "not read.*-00002-of-00002")),
    ("whole", "set 2"): ("whole", ("not read",)),
    ("whole", "index junk"): ("whole", ("is no index",)),
    ("whole", "bin index 2"): ("whole", ()),
    ("whole", "bin"): ("whole", ()),
    ("set 2", "index 2"): ("set 2", ()),
    ("set 2", "index 2", "set 3"): ("set 2", (r"not read.*-00001-of-00003",)),
    ("set 2", "index 2", "bin"): ("set 2", ()),
    ("set 2", "index 2", "bin index 2"): ("set 2", ()),
    ("set 2", "bin"): ("bin", ("not read.*model-00001-of-00002.safetensors",)),
    ("bin", "bin index 2"): ("bin", ("names pytorch_model-00001",)),
    ("bin", "bin index 2", "bin set 2"): ("bin", ("names pytorch_model-0", "not read")),
    ("bin set 2", "bin index 2"): ("bin set 2", ()),
}
#: What transformers fails on, and what is said of it here.
REFUSED = {
    ("set 2", "index 3"): "not there; others are .*-00002-of-00002.*remove the index",
    ("set 2", "index junk"): "not JSON",
    ("bin", "index 2"): "in the index, but not there$",
    ("bin set 2", "bin index 2", "index 2"): "in the index, but not there$",
    ("set 2", "set 3"): "also in",
}


def fill(folder: Path, parts: Parts) -> None:
    """Each kind of part has values of its own."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for value, part in enumerate(parts, 1):
        kind, _, count = part.removeprefix("bin ").partition(" ")
        is_bin = part.startswith("bin")
        start, end = BIN.split(".") if is_bin else WHOLE.split(".")
        state = {name: torch.full(shape, float(value)) for name, shape in SHAPES.items()}
        numbers = range(1, int(count) + 1) if count.isdigit() else ()
        files = [f"{start}-{n:05}-of-{int(count):05}.{end}" for n in numbers]
        names = list(state)
        if kind == "index":
            at = {name: file for i, file in enumerate(files) for name in names[i :: len(files)]}
            text = json.dumps({"metadata": {}, "weight_map": at}) if files else "{"
            (folder / f"{start}.{end}.index.json").write_text(text)
            continue
        for i, file in enumerate(files or [f"{start}.{end}"]):
            piece = {name: state[name] for name in names[i :: max(len(files), 1)]}
            if is_bin:
                torch.save(piece, folder / file)
            else:
                save_file(piece, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize("parts", CHOSEN, ids=" + ".join)
def test_what_transformers_would_load_is_read(tmp_path, parts):
    fill(tmp_path, parts)
    chosen, warned = CHOSEN[parts]
    found = open_checkpoint(tmp_path)
    assert found.problems == ()
    values = {float(found[name].read().flatten()[0]) for name in SHAPES}
    assert values == {parts.index(chosen) + 1}
    assert len(found.warnings) == len(warned)
    for said, pattern in zip(found.warnings, warned, strict=True):
        assert re.search(pattern, said), said


@pytest.mark.parametrize("parts", REFUSED, ids=" + ".join)
def test_what_it_cannot_load_is_a_problem(tmp_path, parts):
    fill(tmp_path, parts)
    found = open_checkpoint(tmp_path).problems
    assert found
    assert re.search(REFUSED[parts], found[0].message), found[0].message


@needs_transformers_5
@pytest.mark.slow
def test_transformers_chooses_the_same(tmp_path):
    import transformers

    loader = transformers.LlamaForCausalLM.from_pretrained
    for number, parts in enumerate((*CHOSEN, *REFUSED)):
        folder = tmp_path / str(number)
        folder.mkdir()
        fill(folder, parts)
        if parts in REFUSED:
            with pytest.raises((OSError, ValueError)):
                loader(folder, local_files_only=True)
            continue
        state = loader(folder, local_files_only=True).state_dict()
        values = {float(tensor.flatten()[0]) for tensor in state.values()}
        assert values == {parts.index(CHOSEN[parts][0]) + 1}, parts


def test_an_index_of_the_whole_file_is_held_against_it(tmp_path):
    fill(tmp_path, ("whole",))
    index = {"weight_map": dict.fromkeys([*SHAPES, "model.lost.weight"], WHOLE)}
    (tmp_path / f"{WHOLE}.index.json").write_text(json.dumps(index))
    found = open_checkpoint(tmp_path)
    assert [(p.kind, p.where) for p in found.problems] == [("missing-tensor", "model.lost.weight")]
    assert found.warnings == ()


def test_the_index_of_the_model_comes_before_one_of_another_name(tmp_path):
    fill(tmp_path, ("set 2", "index 2"))
    other = {"weight_map": {"x": "consolidated-1.safetensors"}}
    (tmp_path / "consolidated.safetensors.index.json").write_text(json.dumps(other))
    assert open_checkpoint(tmp_path).problems == ()
