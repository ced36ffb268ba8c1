"""Commands that bring images from engines into a store and back: push, pull, list, login."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.options import JsonOption, ProgressOption, ProgressStyle, QuietOption, open_lasting
from holdfast.cli.render import View, ask, printable, read_answer, size_text
from holdfast.config import DEFAULT_LEVEL, Secret, parse_compression, read_image_store
from holdfast.errors import INCOMPLETE, UsageError, exit_code

if TYPE_CHECKING:
    from holdfast.archive.blobs import Compression
    from holdfast.images.engine import Engine
    from holdfast.images.pull import HostResult, Pulled
    from holdfast.storage.store import Store

_COMMANDS = ("push", "pull", "list", "login")
_OLD_SWITCHES = ("-force-local", "-disable-checks", "-use-metaservice")
_OLD_OPTIONS = ("-pullhosts", "-tempdir", "-lockfile")

# The use cases are imported where they are used, so that `holdfast --help` stays fast.
# ruff: noqa: PLC0415

StoreArgument = Annotated[
    str,
    typer.Argument(metavar="STORE", help="The store: s3://BUCKET/PREFIX?region=REGION, file:///PATH, gs://, az://."),
]
TempdirOption = Annotated[
    str | None,
    typer.Option("--tempdir", metavar="DIR", help="Where large layers rest on their way. [default: TMPDIR, or /tmp]"),
]
LockfileOption = Annotated[
    str | None,
    typer.Option("--lockfile", metavar="FILE", help="Wait until no other holdfast works with this lock file."),
]
MetaserviceOption = Annotated[
    bool,
    typer.Option("--use-metaservice", help="Changes nothing: the keys of a machine's role are found without it."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (push, pull):
        app.command()(command)
    app.command("list")(list_images)
    app.command()(login)


def newly_spelled(arguments: Sequence[str]) -> list[str]:
    """Give a command line of Dogestry's as one of Holdfast's; any other as it is.

    Dogestry's options had one dash, and stood before the command: ``-pullhosts tcp://h:2375 pull s3://b hipache``.
    """
    given, rest = list(arguments), []
    while given:
        name, equals, value = given[0].partition("=")
        if name in _OLD_SWITCHES and not equals:
            rest += [f"-{given.pop(0)}"]
        elif name in _OLD_OPTIONS and equals:
            rest += [f"-{name}", value]
            given.pop(0)
        elif name in _OLD_OPTIONS and len(given) > 1:
            rest += [f"-{name}", given[1]]
            del given[:2]
        else:
            break
    if not rest or not given or given[0] not in _COMMANDS:
        return list(arguments)
    return [given[0], *rest, *given[1:]]


def push(  # noqa: PLR0913 - the options of a command
    store: StoreArgument,
    image: Annotated[
        str, typer.Argument(metavar="IMAGE[:TAG]", help="The image in the engine: its name, digest, or id.")
    ],
    *,
    compression: Annotated[
        str,
        typer.Option(
            "--compression",
            metavar="HOW",
            envvar="HOLDFAST_COMPRESSION",
            help="zstd, zstd:1 to zstd:19, gzip (for Docker before 23), none.",
        ),
    ] = "zstd",
    tempdir: TempdirOption = None,
    lockfile: LockfileOption = None,
    use_metaservice: MetaserviceOption = False,  # noqa: ARG001 - Dogestry's
    json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = ProgressStyle.AUTO,
) -> int:
    """Push an image from the engine into a store, without a registry. Only layers that are not there are sent."""
    from holdfast.images.engine import Engine
    from holdfast.images.push import PushOptions
    from holdfast.images.push import push as push_image
    from holdfast.progress import Progress

    how, level = _compression(compression)
    options = PushOptions(how, level, _directory(tempdir))
    opened, engine = _open(store), Engine.open()
    view, job = View(json, quiet, progress.value), Progress()
    with _only_one(lockfile, view), view.watch(job):
        done = push_image(opened, engine, image, options, job)
    layers = done.layers_sent + done.layers_known
    view.result(
        {**done.told(), "store": str(opened), "warnings": list(job.warnings)},
        [
            f"{printable(', '.join(done.names))} is pushed to {opened}",
            (
                f"{done.layers_sent} of {layers} layers ({size_text(done.bytes_sent)}) sent, "
                f"{done.layers_known} were there, in {done.seconds:.1f} s"
            ),
            f"digest {done.digest}, image id {done.image_id}",
        ],
    )
    return 0


def pull(  # noqa: PLR0913 - the options of a command
    store: StoreArgument,
    image: Annotated[
        str, typer.Argument(metavar="IMAGE[:TAG|@DIGEST]", help="The image in the store: its name, digest, or id.")
    ],
    *,
    pullhosts: Annotated[
        list[str] | None,
        typer.Option(
            "--pullhosts",
            metavar="HOST[,HOST]",
            help="Into these engines, not this machine's: tcp://HOST:2375, unix:///PATH, HOST. Repeatable.",
        ),
    ] = None,
    force_local: Annotated[
        bool,
        typer.Option("--force-local", help="Send the image to the hosts also where they could fetch it themselves."),
    ] = False,
    disable_checks: Annotated[
        bool, typer.Option("--disable-checks", help="Do not ask first whether hosts run Holdfast themselves.")
    ] = False,
    server_port: Annotated[
        int | None,
        typer.Option(
            "--server-port",
            metavar="PORT",
            min=1,
            max=65535,
            help="Where Holdfast serves on the hosts. [default: 22375]",
        ),
    ] = None,
    tempdir: TempdirOption = None,
    lockfile: LockfileOption = None,
    use_metaservice: MetaserviceOption = False,  # noqa: ARG001 - Dogestry's
    json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = ProgressStyle.AUTO,
) -> int:
    """Pull an image out of a store into one engine or many. Only layers that an engine lacks are sent to it."""
    from holdfast.images.pull import SERVER_PORT, PullOptions
    from holdfast.images.pull import pull as pull_image
    from holdfast.progress import Progress

    options = PullOptions(
        tempdir=_directory(tempdir),
        check_hosts=not disable_checks,
        force_local=force_local,
        server_port=SERVER_PORT if server_port is None else server_port,
    )
    engines = _engines(pullhosts)
    opened = _open(store)
    view, job = View(json, quiet, progress.value), Progress()
    with _only_one(lockfile, view), view.watch(job):
        done = pull_image(opened, image, engines, options, job)
    return _tell_pulled(view, done, {**done.told(), "store": str(opened), "warnings": list(job.warnings)})


def _tell_pulled(view: View, done: Pulled, document: dict[str, Any]) -> int:
    failed = [(host, host.error) for host in done.hosts if host.error is not None]
    for host, error in failed:
        hint = f" ({error.hint})" if error.hint else ""
        view.warn(printable(f"{host.host} failed: {error}{hint}"))
    if failed and len(failed) == len(done.hosts):
        first = failed[0][1]
        error = type(first)(f"none of {len(failed)} hosts got {done.image}", hint=first.hint)
        view.fail(error, document)
        return exit_code(error)
    image_id = f", image id {done.image_id}" if done.image_id else ""
    view.result(
        document,
        [
            *(_host_line(host) for host in done.hosts if host.error is None),
            f"{printable(done.image)} has digest {done.digest}{image_id}",
            *([f"incomplete: {len(failed)} of {len(done.hosts)} hosts failed"] if failed else []),
        ],
    )
    return INCOMPLETE if failed else 0


def _host_line(host: HostResult) -> str:
    text = f"{printable(host.host)}: {host.state}"
    if host.by_server:
        return f"{text} by its own Holdfast, in {host.seconds:.1f} s"
    if host.layers:
        text += f", {host.layers} layers ({size_text(host.bytes_sent)}) sent"
    return f"{text}, in {host.seconds:.1f} s"


def list_images(
    store: StoreArgument,
    *,
    use_metaservice: MetaserviceOption = False,  # noqa: ARG001 - Dogestry's
    json: JsonOption = False,
) -> None:
    """List the images in a store, in whichever layout they lie."""
    from holdfast.images.catalog import list_images as listed

    def line(document: dict[str, Any]) -> str:
        name = printable(f"{document['name']}:{document['tag']}")
        return name if document["layout"] == "registry" else f"{name}  ({document['layout']})"

    View(json).rows((one.told() for one in listed(_open(store))), line, "images")


def login(
    registry: Annotated[
        str, typer.Argument(metavar="REGISTRY", help="The host that images' names begin with: opsgoodies.com.")
    ],
    *,
    access_key: Annotated[
        str | None, typer.Option("--access-key", metavar="KEY", help="The access key; AWS_ACCESS_KEY when asked.")
    ] = None,
    secret_key_stdin: Annotated[
        bool, typer.Option("--secret-key-stdin", help="Take the secret key from stdin.")
    ] = False,
    s3_url: Annotated[
        str | None, typer.Option("--s3-url", metavar="URL", help="The bucket: s3://BUCKET/PREFIX?region=REGION.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the keys of a bucket where the docker command finds them, for pulls from a Holdfast server.

    What no option names is asked for, or read from stdin: AWS_ACCESS_KEY, AWS_SECRET_KEY, S3_URL, a line each. With
    --access-key the secret key may also come from the environment: AWS_SECRET_ACCESS_KEY, or the file that
    AWS_SECRET_ACCESS_KEY_FILE names. The file is config.json in DOCKER_CONFIG or ~/.docker.
    """
    from holdfast.images.login import docker_directory, registry_host
    from holdfast.images.login import login as log_in

    host = registry_host(registry)
    if secret_key_stdin and (access_key is None or s3_url is None):
        raise UsageError("--secret-key-stdin needs --access-key and --s3-url too", hint="stdin has the secret alone")
    secret = _secret_of_environment(access_key)
    access_key = ask("AWS_ACCESS_KEY") if access_key is None else access_key
    if secret_key_stdin:
        secret = Secret(read_answer())
    elif secret is None:
        secret = Secret(ask("AWS_SECRET_KEY", secret=True))
    s3_url = ask("S3_URL") if s3_url is None else s3_url
    done = log_in(host, access_key, secret, s3_url, directory=docker_directory(os.environ))
    view = View(json, quiet)
    if done.hidden_by is not None:
        view.warn(
            f"docker asks docker-credential-{printable(done.hidden_by)} for keys, and will not see these; to have it "
            f'read them, put "{done.registry}": "" into "credHelpers" in {printable(done.path)}'
        )
    view.result(done.told(), [f"the keys for {done.registry} are in {printable(done.path)}"])


def _secret_of_environment(access_key: str | None) -> Secret | None:
    """Find the secret key that belongs to an access key which was named; None where it is to be asked for."""
    from holdfast.config.secret import read_secret_file

    if access_key is None or os.environ.get("AWS_ACCESS_KEY_ID", access_key) != access_key:
        return None
    found = read_secret_file(os.environ, "AWS_SECRET_ACCESS_KEY") or os.environ.get("AWS_SECRET_ACCESS_KEY")
    return Secret(found) if found else None


def _open(store: str) -> Store:
    from holdfast.storage.store import Store

    return Store(open_lasting(read_image_store(store)))


def _engines(hosts: Sequence[str] | None) -> list[Engine]:
    """Open this machine's engine, or those of the hosts, each once."""
    from holdfast.images.engine import Engine

    if hosts is None:
        return [Engine.open()]
    named = [name for text in hosts for part in text.split(",") if (name := part.strip())]
    if not named:
        raise UsageError("--pullhosts names no host", hint="leave it out to pull into this machine's engine")
    opened = {engine.address: engine for engine in map(Engine.open, named)}
    return list(opened.values())


def _compression(text: str) -> tuple[Compression, int]:
    if text == "gzip":
        return "gzip", DEFAULT_LEVEL
    try:
        level = parse_compression(text)
    except UsageError as error:
        raise UsageError(str(error), hint=f"{error.hint}, or gzip") from error
    return ("none", DEFAULT_LEVEL) if level is None else ("zstd", level)


def _directory(path: str | None) -> str | None:
    if path is not None and not os.path.isdir(path):
        raise UsageError(f"--tempdir is no directory: {path!r}", hint="make it first")
    return path


@contextmanager
def _only_one(path: str | None, view: View) -> Iterator[None]:
    """Be the only one that holds this lock file. The lock goes with the process, however it ends; the file stays."""
    if path is None:
        yield
        return
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UsageError(f"cannot open the lock file {path!r}: {os.strerror(error.errno or 0).lower()}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            view.note(f"waiting for another holdfast that holds {printable(path)}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
