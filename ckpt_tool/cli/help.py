"""Help in plain text: options in groups, one default each, examples; what commands share.

rich would make it, too, and costs more at start-up than everything else together.
"""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

#: Options of all commands, by what they are about, as Python calls them. Tests hold that each is
#: in one group.
GROUPS = {
    "Which model": "config tokenizer tie_word_embeddings value_model lora lora_alpha base"
    " fill_from",
    "Which step of a run": "step steps watch watch_every",
    "Which tensors": "prefix select rename weights patterns",
    "Files and dtypes": "dtype max_shard_size layout layers tower pad_vocab_to_multiple crc",
    "What counts as equal": "atol rtol cast_reference ignore",
    "Checks": "verify check_load check_crc check_replicas",
    "Writing": "dry_run overwrite resume fsync direct_io manifest card",
    "Upload": "upload private",
    "What is shown": "shards problems everything top heatmap report totals rank origin logits",
    "Running": "jobs as_json version verbose quiet show_completion help",
}
_GROUP_OF = {name: title for title, names in GROUPS.items() for name in names.split()}
_OTHERS = "Options"
#: Between an example and what it is for; how wide examples may be beside that.
_WIDE = re.compile(" {2,}")
_WIDEST, _LEAST = 50, 28
#: The commands, in the order of their use.
COMMANDS = ("inspect", "merge", "verify", "to-mcore")
#: Lines are as wide as the terminal, up to this.
MAX_WIDTH = 160


def write_options(command: Any, context: Any, formatter: Any) -> None:
    """Arguments, then options by group: each with its values, and what it is unless it is given."""
    found: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    found |= {title: [] for title in (*GROUPS, _OTHERS)}
    for param in command.get_params(context):
        if getattr(param, "hidden", False):
            continue
        is_argument = param.param_type_name == "argument"
        name = "help" if "--help" in param.opts else param.name  # click's has a name of its own
        title = "Arguments" if is_argument else _GROUP_OF.get(name, _OTHERS)
        found[title].append((_spell(param), _describe(param)))
    for title, rows in found.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def write_examples(epilog: str | None, formatter: Any) -> None:
    """What to type, and what for."""
    if not epilog:
        return
    examples = [_WIDE.split(line, 1) for line in epilog.strip().splitlines()]
    with formatter.section("Examples"):
        formatter.write_dl(
            [(line, "".join(why)) for line, *why in examples],
            col_max=min(_WIDEST, formatter.width - _LEAST),
        )


def _spell(param: Any) -> str:
    """``-h, --help``, ``--crc / --no-crc``, ``--jobs N``, ``OUT``."""
    if param.param_type_name == "argument":
        return str(param.metavar)
    # The names of --help come in any order.
    names = ", ".join(sorted(param.opts, key=len))
    names += "".join(f" / {name}" for name in param.secondary_opts)
    return names if param.is_flag else f"{names} {param.metavar}"


def _describe(param: Any) -> str:
    """What it does; its default, where the text does not say that already."""
    said, default = param.help or "", param.default
    if param.param_type_name == "option" and param.is_flag and default is not None:
        default = next(iter(param.opts if default else param.secondary_opts), None)
    if "[default:" in said or not param.show_default or default in (None, ""):
        return str(said)
    return f"{said} [default: {default}]"


def _spell_command(context: Any) -> str:
    """``merge fsdp``: the words behind the program's name."""
    names: list[str] = []
    while context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    return " ".join(names)


class Whole:
    """A command whose first sentence a shell shows whole, which says no limit."""

    def get_short_help_str(self, limit: int = MAX_WIDTH) -> str:
        """The first sentence, in ``limit`` letters."""
        text: str = super().get_short_help_str(limit)  # type: ignore[misc]
        return text


class Command(Whole, TyperCommand):
    """A command whose help has groups, and which knows the options of other people's scripts."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """``[OPTIONS] CKPT... OUT``, whichever typer it is."""
        pieces = [self.options_metavar or ""]
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                name = f"{_spell(param)}{'...' if param.nargs != 1 else ''}"
                pieces.append(name if param.required else f"[{name}]")
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options, in groups."""
        write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, as they stand."""
        write_examples(self.epilog, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As given; an option of a script is named with what it is here."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            self._explain(ctx, given, error)
            raise

    def _explain(self, ctx: Any, args: list[str], error: Any) -> None:
        """Say more in an error: what an option is here."""
        option = getattr(error, "option_name", "")
        if not hasattr(error, "possibilities"):
            return
        from ckpt_tool.cli.old_flags import Takes, translate

        takes = Takes(
            command=_spell_command(ctx),
            places=[str(p.metavar) for p in self.params if p.param_type_name == "argument"],
            valued=[o for p in self.params if not getattr(p, "is_flag", True) for o in p.opts],
        )
        if here := translate(option, args, takes):
            error.possibilities = []
            said = f"No such option: {option}, which is another program's. Here that is:"
            error.message = said + "".join(f"\n  {line}" for line in here.splitlines())


class Group(TyperGroup):
    """The program, whose help lists commands in the order of their use, with examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments; ``help COMMAND`` is ``COMMAND --help``."""
        if args and args[0] == "help":
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of their use."""
        return sorted(self.commands, key=COMMANDS.index)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Options, in groups, and the commands."""
        write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, as they stand."""
        write_examples(self.epilog, formatter)
