"""``ckpt merge CKPT... OUT``: a group with a command for whatever begins with no name of one."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from ckpt_tool.cli.help import Command, Whole

#: What the command without a word is registered as: no shell hands this on by accident.
NO_WORD = "*"


class WordGroup(Whole, TyperGroup):
    """A group whose command :data:`NO_WORD` takes whatever begins with no other one's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with the command that is meant before them."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [NO_WORD, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The words; of what begins with a hyphen, the options of the command without one."""
        if incomplete.startswith("-"):
            return self.commands[NO_WORD].shell_complete(self._make_plain(ctx), incomplete)
        return super().shell_complete(ctx, incomplete)

    def _make_plain(self, ctx: Any) -> Any:
        """The context of the command without a word, in the group's place."""
        return type(ctx)(self.commands[NO_WORD], info_name=ctx.info_name, parent=ctx.parent)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Help on what can be said without a word, and the words."""
        command = self.commands[NO_WORD]
        plain = self._make_plain(ctx)
        command.format_usage(plain, formatter)
        command.format_help_text(plain, formatter)
        command.format_options(plain, formatter)
        self.format_commands(ctx, formatter)
        command.format_epilog(plain, formatter)


class PathsCommand(Command):
    """A command of ``CKPT... OUT``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As given; of one path alone, it is not CKPT that is missing."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            paths = {param.name: param for param in self.params if param.name in ("ckpt", "out")}
            if getattr(error, "param", None) in paths.values():
                values = self.make_parser(ctx).parse_args(given)[0]
                missing = "out" if isinstance(values.get("out"), str) else "ckpt"
                error.param = paths[missing]  # type: ignore[attr-defined]
            raise


class WordlessCommand(PathsCommand):
    """The command of such a group that is called without its name: messages do not show it."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """The context, called and placed as the group's own."""
        if parent is None:
            return super().make_context(info_name, args, parent, **extra)
        return super().make_context(parent.info_name, args, parent.parent, **extra)
