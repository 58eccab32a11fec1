"""The command line itself: what every command is registered with."""

from typing import Annotated, Any

import typer
import typer.core

EPILOG = (
    "Exit codes: 0 all well, 1 some runs failed, 2 bad input, 70 an error of ours, 130 stopped by "
    "Ctrl-C. "
    "Every command resumes: run it again and only what is missing is done."
)


class _Listing(typer.core.TyperGroup):
    """The list of commands is plain text: loading what draws boxes takes longer than the rest."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


app = typer.Typer(
    name="landscape",
    cls=_Listing,
    help="Measure and draw the loss landscape of networks trained with SAM and its variants.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from landscape import __version__

        typer.echo(f"landscape {__version__}")
        raise typer.Exit


@app.callback()
def _landscape(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version."),
    ] = False,
) -> None:
    """Measure and draw the loss landscape of networks trained with SAM and its variants."""
