"""What a name in a file of DeepSpeed becomes: a stand-in, unless it is a part of Python."""

import pytest

from ckpt_tool.common.errors import UnsafeContentError
from ckpt_tool.readers.deepspeed.optim_states import read_fragment
from ckpt_tool.readers.torch_save.names import resolve_run
from ckpt_tool.readers.torch_save.standins import StandIn


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
        ("lightning.fabric.utilities.data", "AttributeDict"),
        ("my_project.settings", "Run"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("argparse", "Namespace"),
    ],
)
def test_classes_of_libraries_are_stand_ins(module, name):
    made = resolve_run(module, name).call(1)
    assert isinstance(made, StandIn)
    assert (made.qualname, made.args) == (f"{module}.{name}", (1,))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("commands", "getoutput"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("os.path", "join"),
    ],
)
def test_parts_of_python_are_refused(module, name):
    with pytest.raises(UnsafeContentError, match="nothing was run"):
        resolve_run(module, name)


def test_a_fragment_is_read_as_two_sizes():
    """`deepspeed.utils.tensor_fragment.fragment_address`."""
    address = resolve_run("deepspeed.utils.tensor_fragment", "fragment_address").call()
    assert read_fragment(address) is None
    address.set_state({"start": 3, "numel": 9})
    assert read_fragment(address) == (3, 9)
    address.set_state({"start": -3, "numel": 9})
    assert read_fragment(address) is None
    assert read_fragment((3, 9)) is None
