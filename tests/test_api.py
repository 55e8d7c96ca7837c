"""The public API: every name is there, documented, and its examples are true."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ckpt_tool
from ckpt_tool.common import errors

#: What has a runnable example in its docstring.
WITH_EXAMPLES = (
    "LazyTensor",
    "convert_to_mcore",
    "merge_checkpoint",
    "merge_dcp",
    "merge_deepspeed",
    "merge_fsdp",
    "merge_megatron",
    "open_checkpoint",
    "verify_checkpoint",
)


@pytest.mark.parametrize("name", ckpt_tool.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    found = getattr(ckpt_tool, name)
    assert (inspect.getdoc(found) or "").strip()
    assert name in dir(ckpt_tool)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        ckpt_tool.absent  # noqa: B018


def test_type_checkers_are_told_the_same_names_as_everybody():
    tree = ast.parse(Path(ckpt_tool.__file__).read_text())
    told = {
        (node.module, alias.name)
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {(f"ckpt_tool.{home}", name) for name, home in ckpt_tool._HOME_OF.items()}


def test_every_error_class_is_public():
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)]
    assert {c.__name__ for c in classes if c.__module__ == errors.__name__} <= {*ckpt_tool.__all__}


def test_importing_the_package_imports_nothing_else():
    code = "import ckpt_tool, sys; print([m for m in sys.modules if m.startswith('ckpt_tool.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ckpt_tool.common', 'ckpt_tool.common.version']"


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_are_true(name):
    found = getattr(ckpt_tool, name)
    module = importlib.import_module(found.__module__)
    finder = doctest.DocTestFinder(recurse=False)
    examples = [test for test in finder.find(found, name, module=module) if test.examples]
    assert examples, f"{name} has no example"
    for example in examples:
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
        assert result.failed == 0
