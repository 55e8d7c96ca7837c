"""Rank files of Megatron whose pickles are strange, or ask for code."""

import enum
import sys
from argparse import Namespace
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ckpt_tool.common.errors import UnsafeContentError
from ckpt_tool.readers import open_checkpoint
from tests.support.crafted import Call, Name, archive, dumps
from tests.support.rank_files import edit, problems


@pytest.mark.parametrize("where", ["args", "model"])
def test_code_in_a_pickle_is_refused_and_not_run(copied, tmp_path, where):
    folder = copied("llama", "tp2_pp2")
    path = folder / "mp_rank_01_001" / "model_optim_rng.pt"
    marker = tmp_path / "marker"
    bomb = Call(Name("os", "system"), (f"touch {marker}",))
    archive(path, dumps({"model": {}, "iteration": 7, **{where: bomb}}))
    with pytest.raises(UnsafeContentError, match=r"os\.system") as refused:
        open_checkpoint(folder)
    assert str(path) in str(refused.value)
    assert not marker.exists()


STRANGE = {
    "a class that does not exist": Call(Name("megatron.never.was", "X"), (1,), {"a": 2}),
    "a class as it is": Name("verl.workers", "Config"),
    "a class of containers": Call(Name("collections", "defaultdict"), (Name("builtins", "list"),)),
    "numbers of numpy": Call(Name("numpy.core.multiarray", "scalar"), (None, b"\0" * 8)),
    "nothing": None,
    "sizes that are none": Call(
        Name("argparse", "Namespace"),
        (),
        {"tensor_model_parallel_size": "2", "pipeline_model_parallel_size": True}
        | {"expert_model_parallel_size": -1, "expert_tensor_parallel_size": 1 << 70},
    ),
}


def with_args(copied, args: object, names: tuple[str, ...] = ()) -> Path:
    """A rank file with only a state of integers, and with such arguments."""
    folder = copied("llama", "tp1")
    ends = ("embedding.word_embeddings.weight", "decoder.final_layernorm.weight")
    state = torch.zeros(2, 2)
    path = folder / "mp_rank_00" / "model.pt"
    torch.save(dict.fromkeys((*ends, *names), state), path)
    if args is not None:
        archive(path, dumps({"args": args, "model": {"a": 1}}))
    return folder


@pytest.mark.parametrize("args", STRANGE.values(), ids=STRANGE)
def test_strange_arguments_are_inert(copied, args):
    checkpoint = open_checkpoint(with_args(copied, args))
    assert checkpoint.mesh is not None
    assert checkpoint.mesh.shape == (1, 1, 1)
    assert not any(problem.kind == "unreadable" for problem in checkpoint.problems)


def test_items_of_strange_containers_are_forgotten(copied):
    """`defaultdict` and `deque` are pickled as calls whose results are filled afterwards."""
    folder = copied("llama", "tp1")
    path = folder / "mp_rank_00" / "model.pt"
    made = b"ccollections\ndefaultdict\n)R(X\x01\x00\x00\x00aK\x01u"
    made += b"X\x01\x00\x00\x00bK\x02s(K\x01K\x02eK\x03a"
    archive(path, b"\x80\x02}X\x04\x00\x00\x00args" + made + b"s.")
    assert [kind for kind, _ in problems(folder)] == ["tensor", "missing-rank", "missing-rank"]


@pytest.mark.parametrize(
    "name",
    [
        "decoder.layers." + "9" * 900 + ".input_layernorm.weight",
        "decoder.layers.0.mlp.experts.local_experts." + "9" * 900 + ".linear_fc1.weight",
        "decoder.layers.0.mlp.experts.linear_fc1.weight" + "9" * 900,
        "module." * 140,
        "",
    ],
    ids=["layer", "expert", "grouped expert", "wrappers", "empty"],
)
def test_names_that_no_model_has_are_just_names(copied, name):
    assert problems(with_args(copied, None, (name,))) == []


def test_names_that_are_no_text_are_a_problem(copied):
    folder = copied("llama", "tp1")
    edit(folder, "00", lambda state: state.update({5: torch.zeros(2), None: 1}))
    found = problems(folder)
    assert [kind for kind, _ in found] == ["tensor", "tensor"]
    assert "mp_rank_00/model.pt" in found[0][1]


class Pair(namedtuple("Pair", ["first", "second"])):
    """A class of somebody's package."""


class Options(dict):
    """Another."""


class Mode(enum.Enum):
    """And a third."""

    FAST = 1

    def act(self) -> None: ...


@pytest.fixture
def foreign(monkeypatch):
    """The classes above, of a package that nothing is known of."""
    module = ModuleType("mindspeed_llm.args")
    monkeypatch.setitem(sys.modules, "mindspeed_llm", ModuleType("mindspeed_llm"))
    monkeypatch.setitem(sys.modules, "mindspeed_llm.args", module)
    for each in (Pair, Options, Mode):
        monkeypatch.setattr(each, "__module__", module.__name__)
        monkeypatch.setattr(module, each.__name__, each, raising=False)
    weight = torch.Tensor._make_subclass(type("Packed", (torch.Tensor,), {}), torch.ones(2, 2))
    monkeypatch.setattr(type(weight), "__module__", module.__name__)
    monkeypatch.setattr(module, "Packed", type(weight), raising=False)
    return weight


@pytest.mark.parametrize("beside", ["args", "rng_state", "optimizer", "content_metadata"])
def test_classes_of_another_package_beside_weights_are_inert(copied, foreign, beside):
    folder = copied("llama", "tp1")
    plain = dict(open_checkpoint(folder).entries)
    held = {"pair": Pair(1, (2.0, "x")), "options": Options(a=Mode.FAST), "class": Pair}
    held |= {"method": Mode.FAST.act, "by": {(torch.bfloat16, 1.5): 1, 2.5: 2, Mode: 3}}

    (path,) = (folder / "mp_rank_00").iterdir()
    content = torch.load(path, weights_only=False)
    states = {"model": content[0]} if isinstance(content, list) else content
    torch.save({**states, beside: Namespace(tensor_model_parallel_size=1, **held)}, path)
    found = open_checkpoint(folder)
    assert found.problems == ()
    assert {n: e.shape for n, e in found.entries.items()} == {n: e.shape for n, e in plain.items()}


def _packed(weight: torch.Tensor) -> object:
    return weight


@pytest.mark.parametrize(
    "make",
    [_packed, lambda _: Pair(1, 2), lambda _: Options(a=1), lambda _: Mode.FAST, lambda _: Mode],
    ids=["a class of tensors", "a tuple", "a dict", "an enum", "a class itself"],
)
@pytest.mark.parametrize("name", ["decoder.x.weight", "decoder.x._extra_state"])
def test_classes_of_another_package_among_weights_are_refused(copied, foreign, make, name):
    folder = copied("llama", "tp1")
    edit(folder, "00", lambda state: state.get("model", state).update({name: make(foreign)}))
    with pytest.raises(UnsafeContentError, match=rf"{name} is of mindspeed_llm\.args\.") as refused:
        open_checkpoint(folder)
    assert "mp_rank_00" in str(refused.value)
