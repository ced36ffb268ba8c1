"""The command ``holdfast``."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Annotated, NoReturn

import typer

from holdfast import __version__
from holdfast.cli import images, look, serve, volumes
from holdfast.cli.render import View, drop_stdout, flush
from holdfast.errors import HoldfastError, Interrupted, UsageError, exit_code

_GRACE_S = 3.0

app = typer.Typer(
    name="holdfast",
    help="Keep Docker's volumes and images in one bucket, and bring them back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
volumes.register(app)
look.register(app)
images.register(app)
serve.register(app)


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
    """Run the command line and exit with its code (:data:`holdfast.errors.EXIT_CODES`)."""
    # Millions of small objects are made and few of them in cycles: collect less often.
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    _raise_file_limit()
    signal.signal(signal.SIGTERM, _interrupt)
    view = View(json="--json" in sys.argv[1:])
    _end_when_stuck(view)
    sys.exit(_run(view))


def _run(view: View) -> int:  # noqa: PLR0911 - one for each way it can end
    try:
        result = app(images.newly_spelled(sys.argv[1:]), standalone_mode=False)
        if result == exit_code(Interrupted("")):  # what typer makes of Ctrl-C
            return _interrupted(view)
        flush()
    except HoldfastError as error:
        _trace()
        view.fail(error)
        return exit_code(error)
    except typer.TyperException as error:  # an option or argument is wrong or missing
        if view.json:
            view.fail(UsageError(str(error)))
            return error.exit_code
        error.show()  # type: ignore[attr-defined]  # whatever typer raises here has it
        return error.exit_code
    except BrokenPipeError:
        drop_stdout()
        return 1
    except (KeyboardInterrupt, typer.Abort):
        _trace()
        return _interrupted(view)
    return result if isinstance(result, int) else 0


def _interrupted(view: View) -> NoReturn:
    error = Interrupted("interrupted", hint="run it again: it goes on from where it was")
    view.fail(error)
    sys.stdout.flush()
    # Threads may still wait for a dead network: the bucket is consistent at every moment, so they need not end.
    os._exit(exit_code(error))


def _trace() -> None:
    if os.environ.get("HOLDFAST_DEBUG", "").lower() not in ("", "0", "false"):
        traceback.print_exc()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_when_stuck(view: View) -> None:
    """See to it that Ctrl-C ends the program soon, or a second one at once.

    Python acts on a signal between two of its own steps. One that waits in a library for a dead network takes minutes.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        os.read(reader, 1)
        select.select([reader], [], [], _GRACE_S)
        _interrupted(view)

    threading.Thread(target=watch, daemon=True).start()


def _raise_file_limit() -> None:
    """Allow as many open files as the system does: one directory is open per level of a tree."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
