"""One file of torch.save: a state dict alone, or in dictionaries with the state of a run."""

import enum
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ckpt_tool.common.errors import UnsafeContentError
from ckpt_tool.readers import Checkpoint, open_checkpoint
from tests.support.backed import distinct, same
from tests.support.crafted import Call, Name, Raw, archive, dumps

WEIGHTS = {"embed.weight": distinct((4, 3)), "norm.weight": distinct((3,), torch.bfloat16)}
FIXTURE = Path(__file__).parents[1] / "fixtures" / "lightning2.6_ckpt"


def saved(folder: Path, state: object) -> Checkpoint:
    torch.save(state, folder / "checkpoint.pt")
    return open_checkpoint(folder / "checkpoint.pt")


def only_message(found: Checkpoint) -> str:
    (problem,) = found.problems
    return str(problem)


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict", "module", "a.b"])
def test_tensors_are_named_by_the_dictionaries_around_them(tmp_path, wrapper):
    start = f"{wrapper}." if wrapper else ""
    found = saved(tmp_path, {wrapper: WEIGHTS} if wrapper else WEIGHTS)
    assert (found.format, found.problems, found.objects) == ("torch", (), ())
    assert list(found) == [f"{start}{name}" for name in WEIGHTS]
    assert set(found.groups.values()) == {start}
    assert all(same(found[f"{start}{name}"].read(), value) for name, value in WEIGHTS.items())


def test_what_is_beside_the_model_is_listed(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    whole = {"net": {"model": WEIGHTS}, "optimizer": optimizer.state_dict(), "step": 3}
    whole |= {"parts": [torch.ones(1), (torch.ones(2), None)], "args": Namespace(seed=1)}
    found = saved(tmp_path, whole)
    assert found.problems == ()
    assert {name: found.groups[name] for name in found} == {
        "net.model.embed.weight": "net.model.",
        "net.model.norm.weight": "net.model.",
        "optimizer.state.0.step": "optimizer.state.0.",
        "optimizer.state.0.exp_avg": "optimizer.state.0.",
        "optimizer.state.0.exp_avg_sq": "optimizer.state.0.",
        "parts.0": "",
        "parts.1.0": "",
    }
    assert found.objects == ("optimizer.param_groups", "step", "parts.1.1", "args")


def test_what_is_not_wanted_is_not_looked_at(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": WEIGHTS, "optimizer": {"x": torch.ones(5).view(1, 5)}}, path)
    found = open_checkpoint(path, lambda name: name.startswith("model."))
    assert list(found) == ["model.embed.weight", "model.norm.weight"]
    assert found.left_out["optimizer.x"].shape == (1, 5)


def test_a_checkpoint_of_lightning(tmp_path):
    found = open_checkpoint(FIXTURE / "last.ckpt")
    assert found.problems == ()
    assert found.side_files == FIXTURE
    assert sum(name.startswith("state_dict.model.") for name in found) == 12
    assert "hyper_parameters" in found.objects


# --- what is no part of a model


class Mode(enum.Enum):
    FAST = 1


@pytest.fixture
def foreign(monkeypatch):
    """An enum of a package that nothing is known of."""
    module = ModuleType("swift_llm")
    monkeypatch.setitem(sys.modules, "swift_llm", module)
    monkeypatch.setattr(Mode, "__module__", "swift_llm")
    monkeypatch.setattr(module, "Mode", Mode, raising=False)
    return Mode.FAST


@pytest.mark.parametrize("key", ["args", "rng_state", "optimizer", "content_metadata", "cfg"])
@pytest.mark.parametrize("beside", ["the model", "weights"])
def test_objects_of_any_package_in_the_state_of_a_run_are_inert(tmp_path, foreign, key, beside):
    state = {"model": WEIGHTS} if beside == "the model" else dict(WEIGHTS)
    found = saved(tmp_path, {**state, key: {"mode": foreign, "by": {foreign: 1}}})
    assert (found.problems, len(found)) == ((), 2)
    found = saved(tmp_path, {**state, key: foreign})
    assert (found.problems, found.objects) == ((), (key,))


def test_an_object_of_any_package_among_weights_is_refused(tmp_path, foreign):
    with pytest.raises(UnsafeContentError, match=r"pt: model\.mode is of swift_llm\.Mode"):
        saved(tmp_path, {"model": {**WEIGHTS, "mode": foreign}})


@pytest.mark.parametrize("beside", [{}, {"model": WEIGHTS}])
def test_code_is_refused_wherever_it_stands(tmp_path, beside):
    path = tmp_path / "checkpoint.pt"
    bomb = Call(Name("os", "system"), (f"touch {tmp_path / 'marker'}",))
    archive(path, dumps({"args": bomb}))
    with pytest.raises(UnsafeContentError, match=r"os\.system"):
        open_checkpoint(path)
    assert not (tmp_path / "marker").exists()


def test_a_pickled_model_is_no_state_dict(tmp_path, foreign):
    path = tmp_path / "checkpoint.pt"
    net = Call(Name("nets.resnet", "Net"), (), {"training": True})
    archive(path, dumps(net))
    assert "holds a nets.resnet.Net, expected a state dict" in only_message(open_checkpoint(path))
    archive(path, dumps({"model": net, "epoch": 3}))
    assert "model: an object of nets.resnet.Net; its state dict is" in only_message(
        open_checkpoint(path)
    )


def test_an_object_among_weights_is_a_problem(tmp_path):
    found = saved(tmp_path, {"model": {**WEIGHTS, "x": Namespace(a=1)}})
    assert only_message(found) == "model.x: a Namespace, expected a tensor"
    found = saved(tmp_path, {"model": {**WEIGHTS, "x._extra_state": Namespace(a=1)}})
    assert (found.problems, found.objects) == ((), ("model.x._extra_state",))


def test_one_name_for_two_tensors_is_a_problem(tmp_path):
    found = saved(tmp_path, {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})
    assert only_message(found) == "a.b: two tensors of one name"


@pytest.mark.parametrize("key", [None, 1.5, ("a",), "x" * 999])
def test_a_tensor_without_a_name_is_a_problem(tmp_path, key):
    found = saved(tmp_path, {"model": {key: torch.ones(1)}})
    assert "a tensor by a name that is no text, or too long" in only_message(found)


def test_a_list_of_tensors_is_no_state_dict(tmp_path):
    assert "holds a list, expected a state dict" in only_message(saved(tmp_path, [torch.ones(1)]))


def test_a_file_of_objects_alone_has_no_tensor(tmp_path):
    assert "no tensor in it, but 2 objects" in only_message(saved(tmp_path, {"a": 1, "b": [None]}))


# --- hostile files


def in_each_other(levels: int, width: int) -> dict:
    """Dictionaries that hold the next one several times."""
    inner: dict = {"w": torch.ones(1)}
    for _ in range(levels):
        inner = {str(number): inner for number in range(width)}
    return inner


def test_dictionaries_again_and_again_are_given_up(tmp_path):
    begin = time.monotonic()
    found = saved(tmp_path, in_each_other(40, 9))
    assert "again and again" in only_message(found)
    assert time.monotonic() - begin < 5


def test_dictionaries_without_end_are_given_up(tmp_path):
    path = tmp_path / "checkpoint.pt"
    archive(path, b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.")
    assert "again and again" in only_message(open_checkpoint(path))
    deep = Raw(b"}X\x01\x00\x00\x00a" * 100_000 + b"N" + b"s" * 100_000)
    archive(path, dumps(deep))
    assert "without end" in only_message(open_checkpoint(path))


def test_one_dictionary_in_two_places_is_read_twice(tmp_path):
    shared = {"w": torch.ones(2)}
    found = saved(tmp_path, {"model": shared, "ema": shared})
    assert (list(found), found.problems) == (["model.w", "ema.w"], ())


def test_names_that_look_like_keys_of_a_run_take_no_time(tmp_path):
    key = "_optim" * 150 + "!"
    begin = time.monotonic()
    found = saved(tmp_path, {key: None, "w": torch.ones(1)})
    assert (list(found), time.monotonic() - begin < 2) == (["w"], True)


def test_a_truncated_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": WEIGHTS}, path)
    path.write_bytes(path.read_bytes()[:-200])
    assert str(path) in only_message(open_checkpoint(path))
