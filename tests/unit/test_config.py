import re
import subprocess
import sys
import tempfile
import textwrap
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import (
    DEFAULT_LEVEL,
    Address,
    Log,
    Persist,
    Secret,
    Serve,
    load_secret_files,
    parse_compression,
    read_configuration,
    read_image_store,
    read_settings,
    schema,
)
from holdfast.config.secret import AWS_SECRETS
from holdfast.errors import UsageError


@pytest.fixture(autouse=True)
def no_usual_file(monkeypatch):
    monkeypatch.setattr("holdfast.config.DEFAULT_FILE", "/not/there")


@pytest.fixture
def write(tmp_path):
    """Give a function that writes a file of its own and tells its path."""

    def _write(text):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return str(path)

    return _write


def _store(**given):
    environment = given.pop("environment", {})
    return str(read_settings(environment=environment, **given).store)


def test_an_option_beats_the_environment_which_beats_the_old_name():
    environment = {"HOLDFAST_STORE": "s3://new", "S3_BUCKET_NAME": "old"}

    assert _store(store="file:///here", environment=environment) == "file:///here"
    assert _store(environment=environment) == "s3://new"
    assert _store(environment={"S3_BUCKET_NAME": "old"}) == "s3://old"


def test_an_empty_variable_counts_as_none():
    assert _store(environment={"HOLDFAST_STORE": "", "S3_BUCKET_NAME": "old"}) == "s3://old"


def test_without_anything_said_root_keeps_its_store_in_var_lib(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)

    assert _store() == "file:///var/lib/holdfast/store"


def test_without_anything_said_others_keep_it_in_their_home(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/kelp")

    assert _store() == "file:///home/kelp/.local/share/holdfast/store"
    assert _store(environment={"XDG_DATA_HOME": "/data"}) == "file:///data/holdfast/store"


def test_compression_by_option_then_environment_then_default():
    environment = {"HOLDFAST_COMPRESSION": "zstd:9"}

    assert read_settings(compression="none", environment=environment).level is None
    assert read_settings(environment=environment).level == 9
    assert read_settings(environment={}).level == DEFAULT_LEVEL


@pytest.mark.parametrize(("text", "level"), [("none", None), ("zstd", 2), ("zstd:1", 1), ("zstd:19", 19)])
def test_compression_reads(text, level):
    assert parse_compression(text) == level


@pytest.mark.parametrize("text", ["", "gzip", "zstd:0", "zstd:20", "zstd:x", "zstd:-3", "zstd:٣", "none:1", "zstd:3:3"])
def test_compression_refuses(text):
    with pytest.raises(UsageError) as caught:
        parse_compression(text)
    assert "zstd:LEVEL" in (caught.value.hint or "")


def test_settings_do_not_change():
    settings = read_settings(store="memory://x", environment={})

    with pytest.raises(AttributeError):
        settings.level = 1


def test_the_server_needs_nothing_but_the_old_environment():
    configuration = read_configuration(
        None,
        {
            "S3_BUCKET_NAME": "old",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "key",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "COMPRESS": "true",
        },
    )

    assert str(configuration.store) == "s3://old"
    assert (configuration.level, configuration.gzip, configuration.layout) == (DEFAULT_LEVEL, True, "registry")
    assert configuration.persist == Persist(Address("127.0.0.1", 8080), "get-saves", (), None, 4, ())
    assert (configuration.log.format, configuration.log.level, configuration.serve.grace_s) == ("text", "info", 30.0)


@pytest.mark.parametrize(
    ("environment", "gzip"),
    [
        ({}, True),
        ({"COMPRESS": "TRUE"}, True),
        ({"COMPRESS": "false"}, False),
        ({"COMPRESS": "yes"}, False),
        ({"COMPRESS": "1"}, False),
        ({"COMPRESS": "false", "HOLDFAST_COMPRESSION": "zstd:3"}, True),
        ({"COMPRESS": "true", "HOLDFAST_COMPRESSION": "none"}, False),
    ],
)
def test_compress_counts_unless_compression_is_set(environment, gzip):
    configuration = read_configuration(None, environment)

    assert configuration.gzip is gzip
    assert (configuration.level is not None) is gzip


def test_the_file_says_everything(write):
    path = write(
        """
        store: s3://b/p?region=eu-west-1
        compression: zstd:7
        layout: tarball
        log: {format: json, level: debug}
        serve: {grace: 1.5m}
        persist:
          listen: "[::1]:80"
          verbs: put-saves
          roots: [/var/www/, "/srv/a:b"]
          token: kelp
          jobs: 2
          exclude: ["*.tmp", cache/]
        """
    )

    configuration = read_configuration(path, {})

    assert str(configuration.store) == "s3://b/p?region=eu-west-1"
    assert (configuration.level, configuration.layout) == (7, "tarball")
    assert configuration.log == Log("json", "debug")
    assert configuration.serve == Serve(90.0)
    assert configuration.persist == Persist(
        Address("::1", 80), "put-saves", (b"/var/www", b"/srv/a:b"), Secret("kelp"), 2, ("*.tmp", "cache/")
    )


def test_the_environment_wins_over_the_file(write):
    path = write("store: s3://file\npersist: {jobs: 9, verbs: put-saves, roots: [/a, /b], token: file}")
    environment = {
        "HOLDFAST_STORE": "s3://environment",
        "HOLDFAST_PERSIST_JOBS": "3",
        "HOLDFAST_PERSIST_ROOTS": "/x:/y/",
        "HOLDFAST_PERSIST_VERBS": "",
        "HOLDFAST_PERSIST_TOKEN": "environment",
    }

    configuration = read_configuration(path, environment)

    assert str(configuration.store) == "s3://environment"
    persist = configuration.persist
    assert (persist.jobs, persist.roots, persist.verbs) == (3, (b"/x", b"/y"), "put-saves")
    assert persist.token.value == "environment"


def test_a_command_reads_store_and_compression_from_the_file(write):
    path = write("store: s3://file\ncompression: none\npersist: {token_file: /not/for/commands}")
    named = {"HOLDFAST_CONFIG": path, "S3_BUCKET_NAME": "old"}

    settings = read_settings(environment=named)

    assert (str(settings.store), settings.level) == ("s3://file", None)
    assert _store(environment={"HOLDFAST_STORE": "s3://new", **named}) == "s3://new"
    assert read_settings(compression="zstd:5", environment=named).level == 5


def test_the_usual_file_is_read_if_it_exists(write, monkeypatch):
    monkeypatch.setattr("holdfast.config.DEFAULT_FILE", write("store: s3://usual"))

    assert _store() == "s3://usual"
    assert str(read_configuration(None, {}).store) == "s3://usual"
    assert str(read_configuration(write("store: s3://named"), {}).store) == "s3://named"


def test_a_file_that_only_root_reads_does_not_hinder_who_names_the_store(write, monkeypatch):
    monkeypatch.setattr("holdfast.config.DEFAULT_FILE", write("store: s3://usual"))
    monkeypatch.setattr("os.access", lambda *_: False)

    assert _store(store="s3://mine") == "s3://mine"


@pytest.mark.parametrize(
    "read", [lambda path: read_configuration(path, {}), lambda path: _store(config=path)], ids=["server", "command"]
)
def test_a_named_file_must_be_there(read, tmp_path):
    with pytest.raises(UsageError, match=r"cannot read '.*/none\.yaml': no such file"):
        read(str(tmp_path / "none.yaml"))


def test_an_empty_file_or_section_says_nothing(write):
    nothing = read_configuration(None, {})

    assert read_configuration(write(""), {}) == nothing
    assert read_configuration(write("# only words\npersist:\nlog: {}\n"), {}) == nothing


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("persist:\n  jbos: 3", "line 2: unknown key 'persist.jbos'", "'persist.jobs'"),
        ("log:\n\n  level: info\nlisten: 80", "line 4: unknown key 'listen'", "'persist.listen'"),
        ("presist: {}", "line 1: unknown key 'presist'", "'persist'"),
        ("_env_file: x", "unknown key '_env_file'", ""),
        ("log: {xyzzy: 1}", "unknown key 'log.xyzzy'", "format, level"),
        ("persist: 5", "line 1: persist is a section", ""),
        ("persist: {jobs: 65}", "line 1: persist.jobs must be a whole number from 1 to 64", ""),
        ("persist: {jobs: 0}", "persist.jobs must be", ""),
        ("persist: {jobs: true}", "persist.jobs must be", ""),
        ("persist: {jobs: [1]}", "persist.jobs must be", ""),
        ("persist: {verbs: post-saves}", "persist.verbs must be 'get-saves' or 'put-saves'", ""),
        ("persist: {roots: [www]}", "persist.roots must be absolute", ""),
        ("persist: {roots: [/a/../b]}", "persist.roots must be absolute", ""),
        ("persist: {roots: {/a: /b}}", "persist.roots must be a list", ""),
        ("persist: {exclude: [[]]}", "persist.exclude must be a text", ""),
        ("persist: {exclude: [{a: b}]}", "line 1: nested too deeply", ""),
        ("persist: {exclude: {a: b}}", "persist.exclude must be a list", ""),
        ("persist: {token: [a]}", "persist.token must be a text", ""),
        ("persist:\n  token:\n", "line 2: persist.token is empty", ""),
        ('persist: {token: ""}', "persist.token is empty", ""),
        ("persist: {token: a, token_file: /b}", "both persist.token and persist.token_file", ""),
        ("log: {format: xml}", "log.format must be 'text' or 'json'", ""),
        ("serve: {grace: 30}", "serve.grace must be a duration", ""),
        ("store: [a]", "line 1: store must be a text", ""),
        ("store: a\nlayout: registry\nstore: b", "line 3: store is set twice, first on line 1", ""),
        ("- a", "holds no settings", "KEY: VALUE"),
        ("a: b: c", "line 1, column 5: not YAML: mapping values are not allowed here", "quotes"),
        ("store: x\nlog: [", "line 2, column 7: not YAML", ""),
        ("store: \x00", "line 1, column 8: not YAML", ""),
        ("persist: &a\n  exclude: [*a]", "nested too deeply", ""),
        ("a: " + "[" * 5000, "nested too deeply", ""),
        ("? [a]\n: b", "line 1: a key must be a name", ""),
        ("layout: dogestry", "dogestry", "registry or tarball"),
        ("layout: files", "layout must be 'registry', 'tarball' or 'dogestry'", ""),
    ],
)
def test_a_file_is_refused(write, text, message, hint):
    with pytest.raises(UsageError) as caught:
        read_configuration(write(text), {})

    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_a_file_that_is_no_text_or_too_long_is_refused(tmp_path):
    binary, long = tmp_path / "binary", tmp_path / "long"
    binary.write_bytes(b"store: s3://x\n\xff\n")
    long.write_bytes(b"#" * (1 << 20) + b"\n")

    with pytest.raises(UsageError, match="line 2: not UTF-8"):
        read_configuration(str(binary), {})
    with pytest.raises(UsageError, match="longer than 1024 KiB"):
        read_configuration(str(long), {})


def test_a_command_tells_of_a_slip_in_the_file_too(write):
    with pytest.raises(UsageError, match="unknown key 'stroe'"):
        _store(config=write("stroe: s3://x"))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        (":80", "", 80),
        ("[::1]:80", "::1", 80),
        ("8080", "127.0.0.1", 8080),
        ("localhost:0", "localhost", 0),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
    ],
)
def test_addresses(write, text, host, port):
    assert read_configuration(None, {"HOLDFAST_PERSIST_LISTEN": text}).persist.listen == Address(host, port)
    assert read_configuration(write(f"persist:\n  listen: '{text}'"), {}).persist.listen == Address(host, port)


def test_an_address_without_quotes_is_no_number(write):
    assert read_configuration(write("persist:\n  listen: 8080"), {}).persist.listen.port == 8080


@pytest.mark.parametrize("text", [":", "x", "a:b", ":65536", "::1:80", "[::1]", "[x]:80", "a b:80", ":-1", ":٣"])
def test_what_is_no_address(text):
    with pytest.raises(UsageError, match="HOLDFAST_PERSIST_LISTEN must be an address"):
        read_configuration(None, {"HOLDFAST_PERSIST_LISTEN": text})


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h", 3600), ("0s", 0)])
def test_durations(text, seconds):
    assert read_configuration(None, {"HOLDFAST_SERVE_GRACE": text}).serve.grace_s == seconds


@pytest.mark.parametrize("text", ["30", "s", "-1s", "1d", "1 s", "1e3s", "9" * 400 + "h", "infs"])
def test_what_is_no_duration(text):
    with pytest.raises(UsageError, match="HOLDFAST_SERVE_GRACE must be a duration"):
        read_configuration(None, {"HOLDFAST_SERVE_GRACE": text})


def test_the_layout_may_stand_in_the_url():
    url = "s3://b?layout=tarball"

    assert read_configuration(None, {"HOLDFAST_STORE": url}).layout == "tarball"
    assert read_configuration(None, {"HOLDFAST_STORE": url, "HOLDFAST_LAYOUT": "tarball"}).layout == "tarball"
    with pytest.raises(UsageError, match="set to registry, but the store's URL says layout=tarball"):
        read_configuration(None, {"HOLDFAST_STORE": url, "HOLDFAST_LAYOUT": "registry"})
    with pytest.raises(UsageError, match="dogestry"):
        read_configuration(None, {"HOLDFAST_STORE": "s3://b?layout=dogestry"})


def test_a_slip_in_a_variable_is_told_and_those_of_kubernetes_are_left_alone():
    with pytest.raises(UsageError, match="unknown variable 'HOLDFAST_PERSIST_TOKENS'") as caught:
        read_configuration(None, {"HOLDFAST_PERSIST_TOKENS": "kelp"})
    assert caught.value.hint == "did you mean HOLDFAST_PERSIST_TOKEN?"
    read_configuration(
        None,
        {
            "HOLDFAST_PORT": "tcp://10.0.0.1:80",
            "HOLDFAST_PERSIST_PORT": "tcp://10.0.0.1:80",
            "HOLDFAST_PERSIST_SERVICE_HOST": "10.0.0.1",
            "HOLDFAST_PERSIST_PORT_80_TCP_ADDR": "10.0.0.1",
        },
    )


def test_a_token_comes_from_a_file_without_its_newline(write):
    path = write("kelp\n")

    assert read_configuration(None, {"HOLDFAST_PERSIST_TOKEN_FILE": path}).persist.token.value == "kelp"
    assert read_configuration(write(f"persist: {{token_file: {path}}}"), {}).persist.token.value == "kelp"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HOLDFAST_PERSIST_TOKEN": ""}, "HOLDFAST_PERSIST_TOKEN is empty"),
        ({"HOLDFAST_PERSIST_TOKEN": "a", "HOLDFAST_PERSIST_TOKEN_FILE": "/b"}, "both HOLDFAST_PERSIST_TOKEN and"),
        ({"HOLDFAST_PERSIST_TOKEN_FILE": "/not/there"}, "HOLDFAST_PERSIST_TOKEN_FILE: cannot read '/not/there'"),
        ({"HOLDFAST_PERSIST_TOKEN_FILE": "/"}, "HOLDFAST_PERSIST_TOKEN_FILE: cannot read '/'"),
        ({"HOLDFAST_PERSIST_TOKEN": "two words"}, "HOLDFAST_PERSIST_TOKEN: a token has only"),
    ],
)
def test_a_token_that_cannot_be(environment, message):
    with pytest.raises(UsageError, match=message):
        read_configuration(None, environment)


SECRET = "kelpkelpkelp"


@pytest.mark.parametrize(
    "text",
    [
        f"persist: {{token: {SECRET} x}}",
        f"persist: {{token: {SECRET}\u00e9}}",
        f"persist: {{token: [{SECRET}]}}",
        f"persist: {{token: {{{SECRET}: 1}}}}",
        f"persist:\n  token: *{SECRET}",
        f"persist:\n  token: !{SECRET}!{SECRET} x",
        f"persist:\n  token: &{SECRET} &{SECRET}",
        f'persist:\n  token: "{SECRET}\\q"',
        f"persist:\n  token: {SECRET}: b",
        f"persist:\n  token: %{SECRET}",
        f"persist:\n  token: @{SECRET}",
        f"persist:\n  token: {SECRET}\n  jobs: x",
        f"persist:\n  token: {SECRET}\n  token_file: /x",
    ],
)
def test_no_error_shows_a_secret(write, text):
    path = write(text)

    with pytest.raises(UsageError) as caught:
        read_configuration(path, {})

    assert SECRET not in "".join(traceback.format_exception(caught.value)) + (caught.value.hint or "")


def test_no_error_shows_what_is_in_a_secrets_file(tmp_path):
    path = tmp_path / "secret"
    for content in (SECRET.encode() + b"\xff", SECRET.encode() + b" x", SECRET.encode() * 10000, b"\n"):
        path.write_bytes(content)

        with pytest.raises(UsageError) as caught:
            read_configuration(None, {"HOLDFAST_PERSIST_TOKEN_FILE": str(path)})

        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert str(path) in str(caught.value) or "a token has only" in str(caught.value)


def test_a_secret_does_not_show_itself():
    configuration = read_configuration(None, {"HOLDFAST_PERSIST_TOKEN": SECRET})

    assert configuration.persist.token.value == SECRET
    for shown in (str(configuration), repr(configuration), f"{configuration.persist.token}"):
        assert SECRET not in shown


def test_secret_files_fill_the_variables_of_aws(write):
    environment = {"AWS_ACCESS_KEY_ID": "", "AWS_ACCESS_KEY_ID_FILE": write("id\n"), "AWS_SESSION_TOKEN": "kept"}
    environment["AWS_SECRET_ACCESS_KEY_FILE"] = write("key")

    load_secret_files(environment)
    load_secret_files(environment)

    assert environment == {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_SESSION_TOKEN": "kept"}


def test_of_secret_files_either_all_are_loaded_or_none(write):
    environment = {"AWS_ACCESS_KEY_ID_FILE": write("id"), "AWS_SESSION_TOKEN_FILE": "/not/there"}
    before = environment.copy()

    with pytest.raises(UsageError, match="AWS_SESSION_TOKEN_FILE: cannot read '/not/there'"):
        load_secret_files(environment)

    assert environment == before


def test_a_secret_of_aws_given_twice_is_an_error(write):
    with pytest.raises(UsageError, match="both AWS_ACCESS_KEY_ID and AWS_ACCESS_KEY_ID_FILE"):
        load_secret_files({"AWS_ACCESS_KEY_ID": "id", "AWS_ACCESS_KEY_ID_FILE": write("id")})


def test_a_command_without_a_file_does_not_load_what_reads_files():
    code = (
        "import sys; from holdfast.config import read_settings; read_settings(environment={}); "
        "sys.exit(bool({'yaml', 'pydantic', 'pydantic_settings'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.text())
def test_any_file_is_read_or_refused(text):
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        with suppress(UsageError):
            read_configuration(file.name, {})


@given(
    st.dictionaries(
        st.sampled_from(sorted(schema.settings().values())),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    )
)
def test_any_environment_is_read_or_refused(environment):
    with suppress(UsageError):
        read_configuration(None, environment)


PAGE = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z._]+)` \| (.*?) \| `([A-Z_]+)` \|", re.MULTILINE)


def test_the_page_has_every_setting_with_its_variable():
    shown = {setting: variable for setting, _, variable in ROW.findall(PAGE)}

    assert shown == {".".join(place): variable for place, variable in schema.settings().items()}


def test_the_defaults_on_the_page_are_those_that_hold():
    both = {"HOLDFAST_PERSIST_VERBS": "get-saves", "HOLDFAST_ENGINE_JOBS": "2"}
    plain = read_configuration(None, both)

    for _, default, variable in ROW.findall(PAGE):
        if default.startswith("`"):
            assert read_configuration(None, {**both, variable: default.strip("`")}) == plain


def test_every_variable_on_the_page_exists():
    secret_files = {f"{name}_FILE" for name in AWS_SECRETS}
    others = {"S3_BUCKET_NAME", "COMPRESS", "AWS_DEFAULT_REGION", "XDG_DATA_HOME"}
    known = {*schema.settings().values(), *schema.OTHER_VARIABLES, *AWS_SECRETS, *secret_files, *others}

    shown = set(re.findall(r"\b(?:HOLDFAST|AWS|S3|XDG)_[A-Z_]+[A-Z]|\bCOMPRESS\b", PAGE))

    assert shown == known


def test_the_example_on_the_page_is_read(write):
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    token = write("kelp\n")

    configuration = read_configuration(write(example.replace("/run/secrets/holdfast-token", token)), {})

    assert configuration.persist.roots == (b"/var/www", b"/srv/uploads")
    assert configuration.persist.token == Secret("kelp")
    assert [(host, url.bucket) for host, url in configuration.engine.registries] == [("opsgoodies.com", "ops-goodies")]


# The engine face


def _faces(configuration):
    return [name for name in ("persist", "engine") if getattr(configuration, name) is not None]


@pytest.mark.parametrize(
    ("text", "environment", "served"),
    [
        ("", {}, ["persist"]),
        ("log: {}\n", {"S3_BUCKET_NAME": "old"}, ["persist"]),
        ("engine:\n", {}, ["engine"]),
        ("engine: {}\npersist:\n", {}, ["persist", "engine"]),
        ("", {"HOLDFAST_ENGINE_LISTEN": ":22375"}, ["engine"]),
        ("", {"HOLDFAST_ENGINE_LISTEN": ""}, ["persist"]),
        ("", {"HOLDFAST_ENGINE_TOKEN": "kelp"}, ["engine"]),
        ("", {"HOLDFAST_ENGINE_LISTEN": ":22375", "HOLDFAST_PERSIST_LISTEN": ":80"}, ["persist", "engine"]),
        ("engine:\n", {"HOLDFAST_PERSIST_TOKEN": "kelp"}, ["persist", "engine"]),
        ("persist:\n", {"HOLDFAST_ENGINE_DOCKER": "tcp://h:2375"}, ["persist", "engine"]),
    ],
)
def test_the_faces_of_which_anything_is_said_are_served(write, text, environment, served):
    assert _faces(read_configuration(write(text), environment)) == served


def test_the_engine_face_from_the_file_and_the_environment(write):
    path = write("""
        engine:
          listen: "[::1]:1234"
          registries:
            opsgoodies.com: s3://ops-goodies/images?region=us-west-2
            localhost:5000: file:///srv/store
            docker.io: s3://hub
          docker: unix:///run/docker.sock
          client_endpoints: ["https://s3.example.com", http://127.0.0.1:9000]
          token: kelp
          jobs: 7
          tempdir: /var/tmp
    """)

    engine = read_configuration(path, {}).engine
    assert (str(engine.listen), engine.docker, engine.jobs) == ("[::1]:1234", "unix:///run/docker.sock", 7)
    assert engine.client_endpoints == ("https://s3.example.com", "http://127.0.0.1:9000")
    assert (engine.token, engine.tempdir) == (Secret("kelp"), "/var/tmp")
    assert {host: str(url) for host, url in engine.registries} == {
        "opsgoodies.com": "s3://ops-goodies/images?region=us-west-2",
        "localhost:5000": "file:///srv/store",
        "docker.io": "s3://hub",
    }
    environment = {
        "HOLDFAST_ENGINE_REGISTRIES": "a.com=s3://a?region=us-west-2, b.com:5000=s3://b",
        "HOLDFAST_ENGINE_CLIENT_ENDPOINTS": "http://127.0.0.1:1 https://h",
        "HOLDFAST_ENGINE_TOKEN_FILE": write("rock\n"),
    }
    engine = read_configuration(path, environment).engine
    assert {host: str(url) for host, url in engine.registries} == {
        "a.com": "s3://a?region=us-west-2",
        "b.com:5000": "s3://b",
    }
    assert engine.client_endpoints == ("http://127.0.0.1:1", "https://h")
    assert (engine.token, engine.jobs) == (Secret("rock"), 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("registries: [a.com]", "each registry's host"),
        ("registries: a.com", "a.com"),
        ("registries: {opsgoodies: s3://b}", "each registry's host"),
        ("registries: {a.com/x: s3://b}", "each registry's host"),
        ("registries: {'': s3://b}", "each registry's host"),
        ("registries: {a.com: http://b}", "no store for a.com"),
        ("registries: {a.com: s3://key:very-secret@b}", "must not hold credentials"),
        ("registries: {a.com: 's3://['}", "no store for a.com"),
        ("registries: {a.com: memory://b}", "holds no images"),
        ("registries: {a.com: 's3://b?layout=tarball'}", "holds no images"),
        ("registries: a.com=s3://b,a.com=s3://c", "twice"),
        ("client_endpoints: https://h/path", "without a path"),
        ("client_endpoints: {a: b}", "must be a list"),
        ("client_endpoints: [h]", "http://HOST:PORT"),
        ("jobs: 0", "1 to 64"),
        ("listen: x", "address"),
        ("registry: {}", "did you mean 'engine.registries'"),
        ("token: 'a b'", "no spaces"),
    ],
)
def test_what_the_engine_face_cannot_be_told(write, text, words):
    with pytest.raises(UsageError) as caught:
        read_configuration(write(f"engine:\n  {text}"), {})
    assert words in f"{caught.value} {caught.value.hint}"
    assert "very-secret" not in str(caught.value)


def test_a_store_of_images_alone_may_have_a_layout_of_theirs():
    environment = {"HOLDFAST_STORE": "s3://b?layout=dogestry", "HOLDFAST_ENGINE_JOBS": "1"}

    assert str(read_configuration(None, environment).store) == "s3://b?layout=dogestry"
    with pytest.raises(UsageError):
        read_configuration(None, {**environment, "HOLDFAST_PERSIST_JOBS": "1"})


@pytest.mark.parametrize("name", ["s3://bucket", "bucket/prefix", " bucket", "buck?et"])
def test_the_old_variable_takes_a_name_alone(name):
    with pytest.raises(UsageError, match="S3_BUCKET_NAME") as caught:
        read_settings(environment={"S3_BUCKET_NAME": name})
    assert "HOLDFAST_STORE" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "layout", "wanted"),
    [
        ("s3://b", None, None),
        ("s3://b", "dogestry", "dogestry"),
        ("s3://b", "tarball", None),  # which is about volumes
        ("s3://b?layout=registry", "dogestry", "registry"),
        ("s3://b?layout=dogestry", None, "dogestry"),
    ],
)
def test_the_layout_of_images(text, layout, wanted):
    url = read_image_store(text, {"HOLDFAST_LAYOUT": layout} if layout else {})
    assert url.option("layout") == wanted


def test_images_are_in_no_tarball():
    with pytest.raises(UsageError, match="layout tarball"):
        read_image_store("s3://b?layout=tarball", {})
