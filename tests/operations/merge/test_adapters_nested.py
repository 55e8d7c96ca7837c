"""Adapters alone, nested in dictionaries (`model.base_model.model.`), as TRL's trainer saves them.

`tests/fixtures/trl1.16_lora_dcp`: trl 1.16 with peft 0.21 and accelerate on two ranks, as written.
"""

from pathlib import Path

import pytest
import torch

from ckpt_tool import MergeOptions, merge_dcp, verify_checkpoint
from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.options import VerifyOptions
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.readers import open_checkpoint
from tests.support.merging import load_folder
from tests.support.resaving import save_dcp
from tests.support.versions import needs_transformers_5

FIXTURE = Path(__file__).parents[2] / "fixtures" / "trl1.16_lora_dcp"
BASE = FIXTURE / "base"
UNCHECKED = WriteOptions(check_load=False)


def merged(folder: Path, **lora: object) -> Path:
    options = MergeOptions(lora=LoraOptions(**lora), write=UNCHECKED)
    merge_dcp(FIXTURE, folder / "out", options)
    return folder / "out"


def read_all() -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(FIXTURE)
    return {name: tensor.read() for name, tensor in checkpoint.items()}


def test_the_names_are_those_that_peft_has(tmp_path):
    out = merged(tmp_path, alpha=10.0)
    found = load_folder(out)
    assert sorted(found) == sorted(name.removeprefix("model.") for name in read_all())
    assert sorted(path.name for path in out.iterdir() if "manifest" not in path.name) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_alpha_has_to_be_said(tmp_path):
    with pytest.raises(UsageError, match="alpha is unknown"):
        merged(tmp_path)
    assert not (tmp_path / "out").exists()


def test_alpha_is_read_above_the_shards(tmp_path):
    folder = tmp_path / "checkpoint-2" / "pytorch_model_fsdp_0"
    save_dcp({"model": {n.removeprefix("model."): t for n, t in read_all().items()}}, folder)
    (folder.parent / "adapter_config.json").write_text('{"lora_alpha": 10, "r": 4}')
    merge_dcp(folder.parent, tmp_path / "out", MergeOptions(write=UNCHECKED))
    assert '"lora_alpha": 10' in (tmp_path / "out" / "adapter_config.json").read_text()


@pytest.mark.slow
@needs_transformers_5
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_loads_it_and_merges_the_same(tmp_path, dtype):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    loader = transformers.AutoModelForCausalLM.from_pretrained
    adapter = merged(tmp_path, alpha=10.0)
    name = str(dtype).removeprefix("torch.")
    options = MergeOptions(lora=LoraOptions(base=BASE, alpha=10.0), dtype=name)
    merge_dcp(FIXTURE, tmp_path / "fused", options)
    theirs = peft.PeftModel.from_pretrained(loader(BASE, dtype=torch.float32), adapter)
    weights = dict(theirs.named_parameters())
    for key, value in read_all().items():
        start, end = key.removeprefix("model.").rsplit(".", 1)
        assert torch.equal(weights[f"{start}.default.{end}"], value), key
    theirs.merge_and_unload().to(dtype).save_pretrained(tmp_path / "theirs")
    whole = loader(tmp_path / "theirs", dtype=dtype).eval()
    ours = loader(tmp_path / "fused", dtype=dtype).eval()
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, whole(tokens).logits)
    plain = loader(BASE, dtype=dtype).eval()
    with torch.no_grad():
        assert not torch.allclose(plain(tokens).logits, whole(tokens).logits, atol=0.1)


def test_the_config_is_the_bases(tmp_path):
    out = merged(tmp_path, alpha=10.0, base=BASE, mode="both")
    assert (out / "config.json").is_file()
    assert (out / "lora_adapter" / "adapter_model.safetensors").is_file()
    assert '"task_type": "CAUSAL_LM"' in (out / "lora_adapter" / "adapter_config.json").read_text()


def test_either_side_of_a_comparison(tmp_path):
    out = merged(tmp_path, alpha=10.0)
    for sides in ((FIXTURE, out), (out, FIXTURE)):
        result = verify_checkpoint(*sides)
        assert (result.equal, result.num_compared) == (True, 42)
    merge_dcp(
        FIXTURE,
        tmp_path / "fused",
        MergeOptions(lora=LoraOptions(base=BASE, alpha=10.0), write=UNCHECKED),
    )
    options = VerifyOptions(lora=LoraOptions(base=BASE, alpha=10.0))
    assert verify_checkpoint(FIXTURE, tmp_path / "fused", options).equal


def test_names_that_are_kept_are_those_of_the_checkpoint(tmp_path):
    merge_dcp(FIXTURE, tmp_path / "out", MergeOptions(keep_names=True))
    assert load_folder(tmp_path / "out").keys() == read_all().keys()


def test_one_file_of_torch_save_is_taken_so_too(tmp_path):
    torch.save({"step": 1, "net": {"model": read_all()}}, tmp_path / "run.pt")
    options = MergeOptions(lora=LoraOptions(alpha=10.0), write=UNCHECKED)
    merge_dcp(tmp_path / "run.pt", tmp_path / "out", options)
    assert all(name.startswith("base_model.model.model.") for name in load_folder(tmp_path / "out"))


@pytest.mark.parametrize("lost", ["lora_A", "lora_B"])
def test_half_of_an_adapter_is_refused(tmp_path, lost):
    state = read_all()
    name = next(name for name in state if lost in name)
    save_dcp({n: t for n, t in state.items() if n != name}, tmp_path / "ck")
    options = MergeOptions(lora=LoraOptions(alpha=10.0), write=UNCHECKED)
    with pytest.raises(MappingError) as refused:
        merge_dcp(tmp_path / "ck", tmp_path / "out", options)
    assert name.split(".lora_")[0].split("base_model.model.")[1] in "".join(refused.value.names)
    assert not (tmp_path / "out").exists()


def test_adapters_of_two_models_are_refused(tmp_path):
    state = {name.removeprefix("model."): tensor for name, tensor in read_all().items()}
    save_dcp({"actor": state, "critic": state}, tmp_path / "ck")
    options = MergeOptions(lora=LoraOptions(alpha=10.0), write=UNCHECKED)
    with pytest.raises(MappingError):
        merge_dcp(tmp_path / "ck", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
