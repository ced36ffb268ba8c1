"""The command ``holdfast``."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import click
import typer

from holdfast import __version__
from holdfast.cli import volumes
from holdfast.cli.render import View, drop_stdout, flush
from holdfast.errors import HoldfastError, Interrupted, exit_code

app = typer.Typer(
    name="holdfast",
    help="Keep Docker's state, volumes and images, in one bucket, and bring it back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
volumes.register(app)


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[  # noqa: ARG001 - handled in its callback
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="HOLDFAST_DEBUG", help="Show a traceback with every error.")
    ] = False,
) -> None:
    if debug:
        os.environ["HOLDFAST_DEBUG"] = "1"


def run() -> None:
    """Run the command line and exit with its code (docs/reference/cli.md, *Exit codes*)."""
    # Millions of small objects are made and few of them in cycles: collect less often.
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    _raise_file_limit()
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(_run())


def _run() -> int:
    view = View(json="--json" in sys.argv[1:])
    try:
        result = app(standalone_mode=False)
        flush()
    except HoldfastError as error:
        _trace()
        view.fail(error)
        return exit_code(error)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        drop_stdout()
        return 1
    except (KeyboardInterrupt, click.Abort):
        _trace()
        view.fail(Interrupted("interrupted", hint="nothing half-done is visible; run it again to go on"))
        sys.stdout.flush()
        # Threads may still wait for a dead network: the bucket is consistent at every moment, so they need not end.
        os._exit(exit_code(Interrupted("")))
    return result if isinstance(result, int) else 0


def _trace() -> None:
    if os.environ.get("HOLDFAST_DEBUG", "").lower() not in ("", "0", "false"):
        traceback.print_exc()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _raise_file_limit() -> None:
    """Allow as many open files as the system does: one directory is open per level of a tree."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
