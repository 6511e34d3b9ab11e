"""What other programs call our commands and options: said to whoever asks for them, and not taken for ours."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

COMMANDS = {"predict": "detect", "infer": "detect", "val": "evaluate", "validate": "evaluate", "test": "evaluate"}

# Parameters that do it here, of which a command has one or none.
OPTIONS = {
    "--data": ("annotations",),
    "--source": ("images",),
    "--model": ("weights", "model"),
    "--weights": ("model",),
    "--imgsz": ("crop", "tile"),
    "--conf": ("score",),
    "--project": ("out",),
    "--name": ("out",),
    "--split": ("part",),
    "--lr0": ("lr",),
    "--amp": ("precision",),
}


class Commands(TyperGroup):
    """The commands; where one or its option is not there under another program's name, ours is said."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """As typer's, which would guess from the spelling."""
        if args[0] in COMMANDS:
            ctx.fail(f"No such command {args[0]!r}; here it is {COMMANDS[args[0]]}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """As typer's."""
        try:
            return super().invoke(ctx)
        except Exception as error:  # an option that is not there: of click or of typer's copy of it, by typer's version
            name = getattr(error, "option_name", None)
            if name in OPTIONS:
                self._tell(error, name)
            raise

    def _tell(self, error: Any, name: str) -> None:
        """Put our name into the error."""
        for parameter in error.ctx.command.params:
            if parameter.name in OPTIONS[name]:
                argument = parameter.param_type_name == "argument"
                ours = f"the argument {parameter.name}" if argument else parameter.opts[0]
                error.message, error.possibilities = f"No such option: {name}; here it is {ours}", None
