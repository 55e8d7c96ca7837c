"""The pickle machine: plain data comes back, hostile data is refused, and nothing ever runs."""

import contextlib
import io
import math
import pickle
import struct
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.common.errors import FormatError, UnsafeContentError
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.torch_save.names import read_storage, resolve
from ckpt_tool.readers.torch_save.standins import StandIn
from ckpt_tool.readers.torch_save.unpickle import unpickle
from tests.support.crafted import (
    DTENSOR,
    ORDERED_DICT,
    Call,
    Name,
    Persistent,
    archive,
    dumps,
    floats,
    load,
    storage,
    tensor,
)


def loads(data: bytes):
    return unpickle(data, resolve, read_storage)


PLAIN = [
    None,
    True,
    False,
    *(0, 1, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**63, -(2**63) - 1, 10**300),
    *(0.5, -1e300, math.inf),
    *("", "a", "é€😀", "x" * 70_000),
    *(b"", b"abc", b"y" * 70_000),
    *((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    *([], [1], list(range(3000))),
    *({}, {"a": 1}, {str(n): n for n in range(3000)}),
    {"nested": [{"deep": ({"er": [1, (2, [3])]},)}]},
    {1: "one", None: "none", b"k": "bytes"},
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_comes_back(protocol):
    for value in PLAIN:
        found = loads(pickle.dumps(value, protocol))
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(
    "arguments", [(), ("x",), ("x", "utf-8"), (b"x", "latin1"), ("€", "latin1")]
)
def test_bytes_are_written_as_text_of_latin1_only(arguments):
    with pytest.raises(FormatError):
        loads(dumps(Call(Name("_codecs", "encode"), arguments)))


def test_bytes_with_an_argument_are_refused():
    with pytest.raises(FormatError):
        loads(dumps(Call(Name("builtins", "bytes"), (1 << 40,))))


def test_a_tensor_of_an_npu_has_plain_rows():
    name = Name("torch_npu.utils.storage", "_rebuild_npu_tensor")
    plain = (storage("0", 6), 0, (2, 3), (3, 1), False, {})
    found = loads(dumps(Call(name, (*plain, 2))))
    assert (found.shape, found.strides, found.offset) == ((2, 3), (3, 1), 0)
    for wrong in (plain, (*plain, "29"), (*plain, 2, 3)):
        with pytest.raises(FormatError):
            loads(dumps(Call(name, wrong)))


def test_a_stream_of_bytes_is_a_stand_in():
    found = loads(pickle.dumps(io.BytesIO(b"scales"), 2))
    assert found.kind == "BytesIO"


@pytest.mark.parametrize("protocol", [4, 5])
def test_sets_come_back(protocol):
    for value in ({1, 2}, frozenset({"a", "b"}), set()):
        assert loads(pickle.dumps(value, protocol)) == value


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=40)
@given(plain, st.integers(2, 5))
def test_any_plain_data_comes_back(value, protocol):
    assert loads(pickle.dumps(value, protocol)) == value


def test_identity_is_kept():
    shared = [1]
    found = loads(pickle.dumps([shared, shared, (shared,)], 4))
    assert found[0] is found[1] is found[2][0]


def test_a_list_that_holds_itself():
    loop: list = []
    loop.append(loop)
    found = loads(pickle.dumps(loop, 4))
    assert found[0] is found


def test_more_memo_entries_than_a_byte_counts():
    value = [str(n) for n in range(600)] * 2
    for protocol in (2, 4):
        assert loads(pickle.dumps(value, protocol)) == value


def test_ordered_dicts_become_dicts_in_order_and_lose_their_attributes():
    value = OrderedDict([("b", 1), ("a", 2)])
    value._metadata = OrderedDict({"": {"version": 1}})
    for protocol in (2, 3, 4, 5):
        found = loads(pickle.dumps(value, protocol))
        assert list(found.items()) == [("b", 1), ("a", 2)]


HOSTILE_NAMES = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("subprocess", "check_output"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("builtins", "compile"),
    ("builtins", "setattr"),
    ("__builtin__", "eval"),
    ("__builtin__", "apply"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.serialization", "load"),
    ("torch._utils", "_import_dotted_name"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.jit._script", "unpackage_script_module"),
    ("torch", "float32.__reduce__"),
    ("torch", "FloatStorage.__init__"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("codecs", "encode"),
    ("_codecs", "decode"),
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections", "defaultdict"),
    ("pickle", "loads"),
    ("runpy", "_run_code"),
    ("pathlib", "Path"),
    ("torch.distributed", "init_process_group"),
    ("torch.distributed.tensorx", "DTensor"),
    ("torch.distributed.rpc.api", "rpc_sync"),
    ("torch.nn.modules.linear", "Linear"),
    ("", ""),
    ("os\\nsystem", "x"),
]


@pytest.mark.parametrize(("module", "name"), HOSTILE_NAMES)
def test_every_other_name_is_refused_and_named(module, name):
    pickles = [
        dumps(Call(Name(module, name), ("touch /tmp/x",))),
        b"\x80\x04" + _short(module) + _short(name) + b"\x93.",
    ]
    for data in pickles:
        with pytest.raises(UnsafeContentError) as caught:
            loads(data)
        assert f"{module}.{name}" in caught.value.message
        assert "nothing was run" in caught.value.message


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def test_a_hostile_name_behind_good_data_is_refused():
    good = tensor(storage("0", 2), (2,), (1,))
    with pytest.raises(UnsafeContentError, match=r"posix\.system"):
        loads(dumps({"a": good, "b": [Call(Name("posix", "system"), ("id",))]}))


def test_the_text_protocol_is_refused():
    for value in ("a", 1, [1.5], {"a": None}):
        with pytest.raises(FormatError):
            loads(pickle.dumps(value, 0))


REFUSED_OPCODES = {
    "INST": b"(i__main__\nX\n.",
    "OBJ": b"(cos\nsystem\no.",
    "OBJ of a known class": b"(ccollections\nOrderedDict\no.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "PERSID": b"Pstorage\n.",
    "INT": b"I1\n.",
    "LONG": b"L1L\n.",
    "FLOAT": b"F1.5\n.",
    "STRING": b"S'abc'\n.",
    "UNICODE": b"Vabc\n.",
    "PUT": b"Np0\n.",
    "GET": b"Np0\ng0\n.",
    "BYTEARRAY8": b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a.",
    "NEXT_BUFFER": b"\x97.",
    "READONLY_BUFFER": b"N\x98.",
    "an unknown opcode": b"\xff.",
}


@pytest.mark.parametrize("data", REFUSED_OPCODES.values(), ids=REFUSED_OPCODES.keys())
def test_opcodes_that_torch_does_not_write_are_refused(data):
    with pytest.raises((UnsafeContentError, FormatError)):
        loads(b"\x80\x02" + data)


MALFORMED = {
    "nothing": b"",
    "only a protocol": b"\x80\x02",
    "no STOP": b"\x80\x02N",
    "STOP of nothing": b"\x80\x02.",
    "protocol 6": b"\x80\x06N.",
    "protocol 1 said aloud": b"\x80\x01N.",
    "pop of nothing": b"\x80\x020.",
    "dup of nothing": b"\x80\x022.",
    "tuple without a mark": b"\x80\x02t.",
    "tuple2 of one": b"\x80\x02N\x86.",
    "append to nothing": b"\x80\x02Na.",
    "append to a tuple": b"\x80\x02)Na.",
    "appends to a dict": b"\x80\x02}(Ne.",
    "setitem of a list": b"\x80\x02]NNs.",
    "setitems with an odd one": b"\x80\x02}(NNNu.",
    "dict with an odd one": b"\x80\x02(NNNd.",
    "additems to a list": b"\x80\x04](K\x01\x90.",
    "memo miss": b"\x80\x02h\x07.",
    "long memo miss": b"\x80\x02j\x07\x00\x00\x00.",
    "memo of nothing": b"\x80\x02q\x00.",
    "MEMOIZE of nothing": b"\x80\x04\x94.",
    "global without an end": b"\x80\x02ccollections",
    "global that is not UTF-8": b"\x80\x02c\xff\nx\n.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "string that is not UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "REDUCE of data": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "REDUCE of None": b"\x80\x02N)R.",
    "REDUCE with a list": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "REDUCE of a dtype": b"\x80\x02ctorch\nfloat32\n)R.",
    "REDUCE of a storage type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "NEWOBJ of data": b"\x80\x02])\x81.",
    "NEWOBJ_EX with keywords": b"\x80\x04ccollections\nOrderedDict\n)}X\x01\x00\x00\x00aNs\x92.",
    "BUILD of a list": b"\x80\x02]}b.",
    "BUILD of a dtype": b"\x80\x02ctorch\nfloat32\n}b.",
    "BUILD of a class": b"\x80\x02ctorch.distributed.tensor\nDTensor\n}b.",
    "BUILD of nothing": b"\x80\x02}b.",
    "OrderedDict with arguments": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_pickles_are_format_errors(data):
    with pytest.raises(FormatError):
        loads(data)


HUGE_LENGTHS = {
    "BINBYTES": b"B" + struct.pack("<L", 0xFFFFFFFF),
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 2**63),
    "BINBYTES8 max": b"\x8e" + struct.pack("<Q", 2**64 - 1),
    "BINUNICODE": b"X" + struct.pack("<L", 0xFFFFFFFF),
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 2**64 - 1),
    "BINSTRING": b"T" + struct.pack("<l", -1),
    "SHORT_BINBYTES": b"C\xff",
    "LONG4": b"\x8b" + struct.pack("<l", -1),
    "LONG4 max": b"\x8b" + struct.pack("<l", 2**31 - 1),
    "LONG1": b"\x8a\xff",
}


@pytest.mark.parametrize("opcode", HUGE_LENGTHS.values(), ids=HUGE_LENGTHS.keys())
def test_huge_lengths_are_format_errors(opcode):
    with pytest.raises(FormatError):
        loads(b"\x80\x04" + opcode + b"abc.")


PERSISTENT_IDS = [
    "0",
    (),
    ("module", "x", "y", "z", 1),
    ("storage", Name("torch", "FloatStorage"), "0", "cpu"),
    ("storage", Name("torch", "FloatStorage"), "0", "cpu", -1),
    ("storage", Name("torch", "FloatStorage"), "0", "cpu", 1.5),
    ("storage", Name("torch", "FloatStorage"), "0", "cpu", True),
    ("storage", Name("torch", "FloatStorage"), "0", "cpu", "8"),
    ("storage", Name("torch", "FloatStorage"), 0, "cpu", 8),
    ("storage", "FloatStorage", "0", "cpu", 8),
    ("storage", ORDERED_DICT, "0", "cpu", 8),
    ["storage", Name("torch", "FloatStorage"), "0", "cpu", 8],
]


@pytest.mark.parametrize("pid", PERSISTENT_IDS, ids=range(len(PERSISTENT_IDS)))
def test_persistent_ids_that_are_no_storages_are_refused(pid):
    with pytest.raises(FormatError):
        loads(dumps({"a": tensor(Persistent(pid), (1,), (1,))}))


TENSORS = {
    "negative size": ((-1,), (1,), 0),
    "negative stride": ((2,), (-1,), 0),
    "negative offset": ((2,), (1,), -1),
    "float size": ((2.0,), (1,), 0),
    "bool size": ((True,), (1,), 0),
    "text size": ("2", (1,), 0),
    "fewer strides": ((2, 2), (2,), 0),
    "no sizes": (None, (1,), 0),
    "2**80 elements": ((2**40, 2**40), (1, 1), 0),
    "float offset": ((2,), (1,), 0.5),
    "nested size": (((2,),), (1,), 0),
    "a dict as size": ({1: 2}, (1,), 0),
}


@pytest.mark.parametrize(("size", "stride", "offset"), TENSORS.values(), ids=TENSORS.keys())
def test_impossible_tensors_are_refused(size, stride, offset):
    with pytest.raises(FormatError):
        loads(dumps(tensor(storage("0", 4), size, stride, offset)))


def test_a_tensor_without_a_storage_is_refused():
    for instead in (None, "0", 7, Call(ORDERED_DICT), tensor(storage("0", 4), (2,), (1,))):
        with pytest.raises(FormatError):
            loads(dumps(tensor(instead, (2,), (1,))))


def test_sizes_beyond_64_bits_are_refused_even_beside_a_zero():
    """No tensor has them; as text they are longer than Python prints, in any later message."""
    with pytest.raises(FormatError):
        loads(dumps(tensor(storage("0", 4), (10**5000, 0), (1, 1))))
    with pytest.raises(FormatError):
        loads(dumps(Call(Name("torch", "Size"), ((10**5000,),))))


def test_lazy_conjugation_is_refused():
    with pytest.raises(FormatError, match="conj"):
        loads(dumps(tensor(storage("0", 4), (2,), (1,), metadata=({"conj": True},))))


GETATTR = Name("builtins", "getattr")
GETATTRS = {
    "of a module's name": (Name("os", "path"), "system"),
    "of a string": ("abc", "format"),
    "of a list": ([1], "append"),
    "of a dtype": (Name("torch", "float32"), "to_real"),
    "of a name that is not text": (DTENSOR, 3),
    "with one argument": (DTENSOR,),
    "with a default": (DTENSOR, "x", None),
    "of itself, of a string": (Call(GETATTR, ("abc", "x")), "y"),
}


@pytest.mark.parametrize("args", GETATTRS.values(), ids=GETATTRS.keys())
def test_getattr_reaches_nothing_but_stand_ins(args):
    with pytest.raises(FormatError):
        loads(dumps(Call(GETATTR, args)))


def test_getattr_of_a_class_is_inert():
    made = Call(Call(GETATTR, (DTENSOR, "from_local.__globals__")), ("anything",), {"a": 1})
    found = loads(dumps(made))
    assert found.qualname == "torch.distributed.tensor.DTensor.from_local.__globals__"
    assert found.args == ("anything",)
    assert found.state == {"a": 1}


def test_classes_of_torch_distributed_do_nothing():
    for module in ("torch.distributed.tensor", "torch.distributed.distributed_c10d"):
        found = loads(dumps(Call(Name(module, "os.system"), ("touch /tmp/never",))))
        assert (found.kind, found.args) == ("system", ("touch /tmp/never",))


@pytest.mark.parametrize("key", [(1, 2), 1.5, frozenset({1}), ((((1,),),),)])
def test_keys_that_are_no_names_are_things_of_their_own(key):
    data = b"\x80\x04}" + pickle.dumps(key, 4)[2:-1] + b"Ns."
    (found,) = loads(data)
    assert isinstance(found, StandIn)
    assert found.args == ()


def test_unhashable_keys_are_refused():
    for key in ([1], {}, {1}):
        data = b"\x80\x04}" + pickle.dumps(key, 4)[2:-1] + b"Ns."
        with pytest.raises(FormatError):
            loads(data)


@pytest.mark.slow
def test_a_key_of_a_million_nested_tuples_is_a_thing_of_its_own():
    (found,) = loads(b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.")
    assert found.kind == "tuple"


STAND_IN = b"ctorch.distributed.tensor\nX\n"
DEEP = {
    "tuples": lambda n: b")" + b"\x85" * n,
    "lists": lambda n: b"]" * n + b"a" * (n - 1),
    "marks": lambda n: b"(" * n + b"t" * n,
    "open marks": lambda n: b"(" * n + b"N",
    "dicts": lambda n: b"}N" * n + b"}" + b"s" * n,
    "stand-ins": lambda n: STAND_IN * n + b")" + b"R\x85" * (n - 1) + b"R",
    "states": lambda n: (STAND_IN + b")R") * n + b"b" * (n - 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("nest", DEEP.values(), ids=DEEP.keys())
def test_deep_nesting_exhausts_nothing(nest):
    """Neither while it is read nor when it is thrown away."""
    with contextlib.suppress(FormatError):
        loads(b"\x80\x02" + nest(1_000_000 if len(nest(2)) == 4 else 100_000) + b".")


@pytest.mark.slow
@pytest.mark.parametrize("nest", DEEP.values(), ids=DEEP.keys())
def test_deep_nesting_anywhere_in_a_file_is_a_problem_of_it(tmp_path, nest):
    inner = nest(20_000)
    sizes = dumps(tensor(storage("0", 4), (7,), (1,)))[2:-1].replace(b"K\x07\x85", inner)
    key = dumps(storage("KEY", 4))[2:-1].replace(b"X\x03\x00\x00\x00KEY", inner)
    for value in (inner, inner + b"\x85", sizes, key):
        data = b"\x80\x02}X\x01\x00\x00\x00a" + value + b"s."
        assert open_checkpoint(archive(tmp_path / "deep.pt", data)).problems


SMALL_MEMORY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.torch_save.names import resolve, read_storage
from ckpt_tool.readers.torch_save.unpickle import unpickle
try:
    unpickle(sys.stdin.buffer.read(), resolve, read_storage)
except FormatError:
    pass
print("survived")
"""


def survives(data: bytes, seconds: float = 20) -> bool:
    """Whether a process with 400 MiB and some seconds comes through."""
    command = [sys.executable, "-c", textwrap.dedent(SMALL_MEMORY)]
    done = subprocess.run(command, input=data, capture_output=True, timeout=seconds, check=False)
    return done.stdout == b"survived\n"


def test_huge_memo_indices_allocate_nothing():
    slots = b"".join(b"r" + struct.pack("<L", 0xFFFFFFFF - n) for n in range(1000))
    assert survives(b"\x80\x02N" + slots + b".")


def repeated(function: str, argument: bytes, times: int) -> bytes:
    """`function(argument)` again and again, both from the memo: five bytes each."""
    module, name = function.rsplit(".", 1)
    head = f"c{module}\n{name}\n".encode() + b"q\x00" + b"0" + argument + b"\x85q\x01" + b"0"
    return b"\x80\x02" + head + b"]" + b"(" + b"h\x00h\x01R" * times + b"e."


NUMBERS = b"".join(b"M" + struct.pack("<H", n) for n in range(60_000))


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        ("builtins.set", b"(" + NUMBERS + b"t"),
        ("torch.Size", b"](" + NUMBERS + b"e"),
        ("torch.Size", b"(" + NUMBERS + b"t"),
    ],
    ids=["sets", "sizes from a list", "sizes from a tuple"],
)
def test_memory_stays_in_proportion_to_the_pickle(function, argument):
    """280 KB of pickle must not become gigabytes: one memoised argument, copied by every call."""
    assert survives(repeated(function, argument, 20_000))


def test_arguments_of_stand_ins_are_not_copied_for_each():
    head = b"ctorch.distributed.tensor\nX\nq\x000(" + NUMBERS + b"tq\x010"
    assert survives(b"\x80\x02" + head + b"](" + b"h\x00h\x01R" * 20_000 + b"e.")


def good_pickle() -> bytes:
    weight = tensor(storage("0", 6), (2, 3), (3, 1))
    bias = Call(
        Name("torch._utils", "_rebuild_parameter"),
        (tensor(storage("1", 3), (3,), (1,)), True, Call(ORDERED_DICT)),
    )
    made = {"weight": weight, "bias": bias, "size": Call(Name("torch", "Size"), ((2, 3),))}
    return dumps(made | {"class": Call(DTENSOR, (1,), ({"a": 1}, {"b": 2}))})


def test_the_good_pickle_is_good():
    found = loads(good_pickle())
    assert (found["weight"].shape, found["bias"].shape, found["size"]) == ((2, 3), (3,), (2, 3))
    assert found["class"].state == {"a": 1, "b": 2}


def test_truncation_anywhere_is_a_format_error():
    data = good_pickle()
    for end in range(len(data)):
        with pytest.raises(FormatError):
            loads(data[:end])


@pytest.mark.slow
@settings(max_examples=400)
@given(st.data())
def test_changed_bytes_give_data_or_a_format_error(data):
    pickled = bytearray(good_pickle())
    for _ in range(data.draw(st.integers(1, 4))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        loads(bytes(pickled))


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_random_bytes_give_data_or_a_format_error(noise):
    with contextlib.suppress(FormatError):
        loads(b"\x80\x04" + noise + b".")


OPCODES = (
    b"\x80\x95.(012qr\x94hjaesu\x90\x91tdl"
    b"c\x93QR\x81\x92bN\x88\x89)]}\x8f\x85\x86\x87KMJG\x8a\x8cXCU"
)
FRAGMENTS = [bytes([op]) for op in OPCODES] + [
    b"K\x01",
    b"X\x01\x00\x00\x00a",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nSize\n",
    b"ctorch\nfloat32\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\ndevice\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_wrapper_subclass\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch.distributed.tensor\nDTensor\n",
    b"cbuiltins\ngetattr\n",
    b"cbuiltins\nset\n",
    dumps(storage("0", 4))[2:-1],
    dumps(tensor(storage("0", 4), (2,), (1,)))[2:-1],
]


@pytest.mark.slow
@settings(max_examples=600)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25))
def test_any_sequence_of_opcodes_gives_data_or_a_format_error(fragments):
    with contextlib.suppress(FormatError):
        loads(b"\x80\x04" + b"".join(fragments) + b".")


class Touch:
    """Pickled by Python itself: `open(path, "w")` when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_create_a_file_creates_none(tmp_path, protocol):
    marker = tmp_path / "marker"
    bomb = pickle.dumps({"weight": Touch(marker)}, protocol)
    pickle.loads(bomb)
    assert marker.exists()  # it does work on Python's unpickler
    marker.unlink()
    for name in ("one.pt", "model_world_size_1_rank_0.pt", "pytorch_model.bin"):
        path = archive(tmp_path / name, bomb, {"0": floats(1.0)})
        with pytest.raises(UnsafeContentError, match=r"(io|builtins)\.open"):
            load(path)
        with pytest.raises(UnsafeContentError, match=r"(io|builtins)\.open") as caught:
            open_checkpoint(path)
        assert str(path) in caught.value.message
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model_world_size_1_rank_0.pt", "pytorch_model.bin"])
def test_a_folder_with_a_pickle_that_would_run_code_is_refused(tmp_path, name):
    marker = tmp_path / "marker"
    folder = tmp_path / "model"
    folder.mkdir()
    archive(folder / name, pickle.dumps({"weight": Touch(marker)}, 2))
    with pytest.raises(UnsafeContentError, match=r"(io|builtins)\.open"):
        open_checkpoint(folder)
    assert not marker.exists()


def test_the_error_as_text_says_which_file(tmp_path):
    path = archive(tmp_path / "bomb.pt", dumps(Call(Name("os", "system"), ("id",))))
    with pytest.raises(UnsafeContentError) as caught:
        load(path)
    assert str(path) in str(caught.value)
