"""``ckpt merge CKPT... OUT``: a group with a command for whatever begins with no name of one."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

#: What the command without a word is registered as: no shell hands this on by accident.
NO_WORD = "*"


class WordGroup(TyperGroup):
    """A group whose command :data:`NO_WORD` takes whatever begins with no other one's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with the command that is meant before them."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [NO_WORD, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Help on what can be said without a word, and the words."""
        command = self.commands[NO_WORD]
        plain = type(ctx)(command, info_name=ctx.info_name, parent=ctx.parent)
        command.format_usage(plain, formatter)
        command.format_help_text(plain, formatter)
        command.format_options(plain, formatter)
        self.format_commands(ctx, formatter)


class PathsCommand(TyperCommand):
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
