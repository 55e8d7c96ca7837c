"""An option of another program's script is refused with the command that does the same here."""

import pytest
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from ckpt_tool.cli.old_flags import OLD
from tests.support.commands import COMMANDS


def refuse(*words: str) -> list[str]:
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr.splitlines()


#: What verl's model_merger, its legacy form and converter_hf_to_mcore are called with.
CALLS = {
    "merge --backend fsdp --local_dir A --target_dir B": ["ckpt merge A B"],
    "merge --backend=megatron --local-dir=A --target-dir=B": ["ckpt merge A B"],
    "merge fsdp --local_dir A --target_dir B --hf_model_path M": ["ckpt merge fsdp A B --config M"],
    "merge --local_dir A --target_dir B --hf_upload_path me/m --private": [
        "ckpt merge A B --upload me/m --private"
    ],
    "merge --local_dir A --target_dir B --is-value-model --tie-word-embedding": [
        "ckpt merge A B --value-model --tie-word-embeddings"
    ],
    "merge --use_cpu_initialization --trust-remote-code --local_dir A": [
        "ckpt merge A OUT",
        "(--use_cpu_initialization: no model is built, and nothing needs a GPU)",
        "(--trust-remote-code: nothing of the model is run)",
    ],
    "merge --dtype keep A --target_dir B": ["ckpt merge A B --dtype keep"],
    "merge A --output_path B --jobs=2": ["ckpt merge A B --jobs=2"],
    "merge --local_dir A --test_hf_dir R": [
        "ckpt merge A OUT",
        "(--test_hf_dir: compare afterwards: ckpt verify CKPT DIR)",
    ],
    "merge --local_dir": ["ckpt merge CKPT OUT"],
    "verify --backend fsdp --local_dir A --test_hf_dir R": ["ckpt verify A R"],
    "inspect --local_dir A": ["ckpt inspect A"],
    "to-mcore --hf_model_path A --output_path B --test": ["ckpt to-mcore A B --verify"],
    "to-mcore --hf-model-path A --output-path B --use-cpu-initialization": ["ckpt to-mcore A B"],
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_typed_here_is_said(call: str) -> None:
    said = refuse(*call.split())
    begin = next(at for at, line in enumerate(said) if line.startswith("Error: No such option: "))
    assert said[begin].endswith(", which is another program's. Here that is:")
    expected = [f"  {line}" for line in CALLS[call]]
    assert said[begin + 1 :][: len(expected)] == expected


def test_what_needs_quotes_has_them() -> None:
    assert refuse("merge", "--local_dir", "a b", "--target_dir", "$HOME")[-1] == (
        "  ckpt merge 'a b' '$HOME'"
    )


def test_an_option_that_is_only_mistyped_is_guessed_as_ever() -> None:
    said = refuse("merge", "--max_shard_size", "5GB", "a", "b")[-1]
    assert said.startswith("Error: No such option")
    assert "--max_shard_size" in said
    assert "--max-shard-size" in said
    assert "another program" not in "".join(refuse("verify", "--nothing-like-it", "a"))


def test_what_the_old_ones_are_exists() -> None:
    for command, options in OLD.items():
        known = COMMANDS["merge *" if command == "merge" else command].params
        flags = {flag for param in known for flag in param.opts}
        places = {param.metavar for param in known if param.param_type_name == "argument"}
        for option, old in options.items():
            assert option not in flags
            assert not old.flag or old.flag in flags
            assert not old.place or old.place in places
            assert sum(map(bool, (old.flag, old.place, old.why))) == 1
