"""The image of our Dockerfile on a real engine: an application's volume, what keeps it, and a third that asks."""

import json
import socket
import socketserver
import threading
from dataclasses import dataclass

import pytest

from engines import wait_until
from servers import answers, free_ports

pytestmark = [pytest.mark.needs("docker", "seaweedfs"), pytest.mark.timeout(300)]

# What it takes to read every file and to give it back its owner, mode, attributes and kind.
LEAST_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP")
STOP_WITHIN_S = 20

FILL = """
    set -e; cd /var/www
    mkdir css private shared; chmod 1777 shared
    echo hello > index.html; chown 33:34 index.html; chmod 640 index.html
    head -c 3000000 /dev/urandom > css/blob
    ln index.html css/again
    ln -s index.html link; ln -s /not/there dangling; chown -h 42:43 dangling
    printf key > private/key; chmod 400 private/key; chown -R 1234:4321 private; chmod 2710 private
    cp /bin/true tool; chown 1000:1000 tool; chmod 6755 tool
    cp /bin/true capable; setcap cap_net_bind_service+ep capable
    mkfifo pipe; mknod null c 1 3; chmod 600 null
    mkdir "a name"; echo text > "a name/ümlaut"
    chown 5:6 .; chmod 751 .
"""
DESCRIBE = """
    set -e; cd /var/www
    find . -printf '%p %y %m %U:%G %n %T@ %l\\n' | sort
    find . -type f -exec sha256sum {} + | sort
    stat -c %t:%T null; getcap capable
    test index.html -ef css/again && echo one file
"""
DAMAGE = (
    "cd /var/www && rm -r css private 'a name' link && echo changed > index.html && chown 9:9 . && touch extra tool"
)
VERBS = {"get-saves": ("GET", "PUT", "POST"), "put-saves": ("PUT", "POST", "GET")}  # save, replace, merge


@dataclass(frozen=True)
class Face:
    """The persist face of a container, asked by curl in another one."""

    containers: object
    curl_image: str
    url: str
    network: str = "host"

    def ask(self, method, path, *options, status=200):
        """Give the answer's JSON, of an answer with this status."""
        code, body = self.try_to_ask(method, path, *options)
        assert code == status, body
        return json.loads(body)

    def try_to_ask(self, method, path, *options):
        """Give the answer's status, and its body."""
        curl = ["curl", "--silent", "--show-error", "--noproxy", "*", "--write-out", "\n%{http_code}"]
        command = [*curl, "--request", method, *options, self.url + path]
        said = self.containers.run(self.curl_image, *command, options=["--network", self.network])
        body, _, code = said.rpartition("\n")
        return int(code), body


@pytest.fixture
def application(containers, base_image, docker_engine):
    """A container with an anonymous volume full of what a volume may hold; application(script) runs in it."""
    name = containers.start(base_image, "sleep", "infinity", options=["--network", "none", "--volume", "/var/www"])

    def execute(script):
        return docker_engine.docker("exec", name, "sh", "-c", script)

    execute.container = name
    execute(FILL)
    return execute


@pytest.fixture
def serve(containers, holdfast_image, base_image, docker_engine):
    """serve(application, env, options): Holdfast with the application's volumes, and its Face."""

    def start(application, env, options=()):
        (port,) = free_ports(1)
        settings = {**env, "HOLDFAST_PERSIST_LISTEN": f"127.0.0.1:{port}"}
        volumes = ["--network", "host", "--volumes-from", application.container]
        container = containers.start(holdfast_image, options=[*volumes, *environment(settings), *options])
        face = Face(containers, base_image, f"http://127.0.0.1:{port}")
        wait_until_it_answers(docker_engine, container, f"{face.url}/-/health")
        return container, face

    return start


def environment(settings):
    return [f"--env={name}={value}" for name, value in settings.items()]


def wait_until_it_answers(engine, container, url):
    def ready():
        running = engine.docker("inspect", "--format", "{{.State.Running}}", container).strip() == "true"
        assert running, engine.logs(container)
        return answers(url)

    wait_until(ready, f"{container} answers")


def old_environment(bucket):
    """All that the container before this one was ever given, and where a bucket is that is not at AWS."""
    return {
        "S3_BUCKET_NAME": bucket.name,
        "AWS_ACCESS_KEY_ID": bucket.access_key,
        "AWS_SECRET_ACCESS_KEY": bucket.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "COMPRESS": "true",
        "AWS_ENDPOINT_URL_S3": bucket.endpoint,
    }


def inspect(engine, thing):
    return json.loads(engine.docker("inspect", thing))[0]


def test_the_image_holds_what_runs_and_nothing_that_built_it(docker_engine, containers, holdfast_image):
    config = inspect(docker_engine, holdfast_image)["Config"]
    look = ["-c", "ls /build 2>/dev/null; ls /opt/holdfast/lib/python3*/site-packages"]
    installed = containers.run(holdfast_image, *look, options=["--network", "none", "--entrypoint", "sh"]).split()

    assert config["Entrypoint"] == ["holdfast"]
    assert config["Cmd"] == ["serve"]
    assert config["User"] == ""
    assert config["ExposedPorts"] == {"80/tcp": {}, "22375/tcp": {}}
    assert config["Volumes"] is None
    assert config["Labels"]["org.opencontainers.image.title"] == "Holdfast"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {"holdfast", "obstore", "starlette"} <= set(installed)
    assert not {"pip", "hatchling", "pytest", "src", "requirements.txt"} & set(installed)


def test_the_version_that_the_label_says_is_the_one_that_runs(docker_engine, containers, holdfast_image):
    label = inspect(docker_engine, holdfast_image)["Config"]["Labels"]["org.opencontainers.image.version"]

    assert containers.run(holdfast_image, "--version", options=["--network", "none"]) == f"holdfast {label}\n"


@pytest.mark.parametrize("verbs", VERBS)
def test_a_volume_is_saved_destroyed_and_restored_by_request(verbs, application, serve, make_s3_bucket):
    save, replace, merge = VERBS[verbs]
    bucket = make_s3_bucket(create=False)
    _, face = serve(application, {**old_environment(bucket), "HOLDFAST_PERSIST_VERBS": verbs})
    before = application(DESCRIBE)

    saved = face.ask(save, "/var/www")
    application(DAMAGE)
    merged = face.ask(merge, "/var/www/")
    after_merge = application(DESCRIBE).splitlines()
    application(DAMAGE)
    replaced = face.ask(replace, "/var/www")

    assert saved["success"] is merged["success"] is replaced["success"] is True
    assert any(" ./extra" in line for line in after_merge)
    assert [line for line in after_merge if "./extra" not in line] == before.splitlines()
    assert application(DESCRIBE) == before
    assert bucket.exists()
    assert bucket.keys()


def test_a_file_is_saved_and_restored_alone(application, serve, make_s3_bucket):
    _, face = serve(application, old_environment(make_s3_bucket(create=False)))
    look = "stat -c '%a %u:%g %Y' /var/www/index.html; cat /var/www/index.html"
    before = application(look)

    face.ask("GET", "/var/www/index.html")
    application("echo changed > /var/www/index.html; chown 0:0 /var/www/index.html; touch /var/www/extra")
    face.ask("PUT", "/var/www/index.html")

    assert application(look) == before
    assert application("ls /var/www/extra")


def test_what_is_no_mounted_volume_can_be_neither_saved_nor_restored(application, serve, make_s3_bucket):
    bucket = make_s3_bucket()
    _, face = serve(application, old_environment(bucket))

    refused = dict.fromkeys(("/etc", "/etc/passwd", "/opt/holdfast", "/proc/1/environ", "/"), 403)
    refused |= {"/var/www/../../etc/shadow": 403, "/%2e%2e/etc/shadow": 400, "/../etc": 400}
    for path, status in refused.items():
        for method in ("GET", "PUT", "POST"):
            assert "error" in face.ask(method, path, "--path-as-is", status=status)
    assert not [key for key in bucket.keys() if "etc" in key or "proc" in key]  # noqa: SIM118


def test_it_becomes_healthy_and_stops_by_itself(application, serve, docker_engine, s3_bucket):
    container, _ = serve(application, old_environment(s3_bucket), ["--health-interval", "1s"])

    wait_until(lambda: inspect(docker_engine, container)["State"]["Health"]["Status"] != "starting", "a verdict")
    health = inspect(docker_engine, container)["State"]["Health"]
    docker_engine.docker("stop", "-t", str(STOP_WITHIN_S), container)

    assert health["Status"] == "healthy", health
    assert inspect(docker_engine, container)["State"]["ExitCode"] == 0, docker_engine.logs(container)  # 137 if killed


def test_secrets_are_in_no_log(application, serve, docker_engine, s3_bucket):
    env = {**old_environment(s3_bucket), "HOLDFAST_PERSIST_TOKEN": "a-token-of-the-tests"}
    container, face = serve(application, env)

    face.ask("GET", "/var/www", status=401)
    face.ask("GET", "/var/www", "--header", "Authorization: Bearer a-token-of-the-tests")
    logged = docker_engine.logs(container)

    assert "/var/www" in logged
    assert s3_bucket.secret_key not in logged
    assert "a-token-of-the-tests" not in logged


def capable_of(names):
    return ["--cap-drop", "ALL", *(f"--cap-add={name}" for name in names), "--read-only"]


@pytest.mark.parametrize("missing", [None, *LEAST_CAPABILITIES])
def test_few_capabilities_suffice_and_none_of_them_can_be_spared(missing, application, serve, make_s3_bucket):
    allowed = capable_of(name for name in LEAST_CAPABILITIES if name != missing)
    env = old_environment(make_s3_bucket(create=False))
    _, face = serve(application, env, [*allowed, "--tmpfs", "/var/cache/holdfast"])
    before = application(DESCRIBE)

    face.try_to_ask("GET", "/var/www")
    application("find /var/www -mindepth 1 -delete; chown 7:7 /var/www; chmod 700 /var/www")
    face.try_to_ask("PUT", "/var/www")
    as_before = application(f"{{ {DESCRIBE} }} 2>&1 || true") == before

    assert as_before == (missing is None)


@pytest.mark.parametrize("user", ["4711:4712", "33:33"])
def test_an_ordinary_user_keeps_a_volume_of_its_own_and_listens_on_port_80(
    user, containers, base_image, holdfast_image, docker_engine
):
    # A network namespace of its own, where Docker lets every user have low ports; the store is a volume, too.
    script = f"echo hello > /data/file; chmod 600 /data/file; chown -R {user} /data /store; exec sleep infinity"
    volumes = [f"--volume={containers.volume()}:/data", f"--volume={containers.volume()}:/store"]
    owner = containers.start(base_image, "sh", "-c", script, options=["--network", "none", *volumes])
    env = {"HOLDFAST_STORE": "file:///store", "HOLDFAST_PERSIST_ROOTS": "/data"}
    wait_until(lambda: docker_engine.docker("exec", owner, "stat", "-c", "%u:%g", "/data").strip() == user, "files")
    options = ["--network", f"container:{owner}", "--volumes-from", owner, "--user", user, *environment(env)]
    container = containers.start(holdfast_image, options=[*options, "--cap-drop", "ALL", "--health-interval", "1s"])
    face = Face(containers, base_image, "http://127.0.0.1", f"container:{owner}")

    def healthy():
        state = inspect(docker_engine, container)["State"]
        assert state["Running"], docker_engine.logs(container)
        return state["Health"]["Status"] == "healthy"

    wait_until(healthy, "healthy")
    face.ask("GET", "/data")
    docker_engine.docker("exec", owner, "sh", "-c", "rm /data/file; touch /data/extra")
    face.ask("PUT", "/data")

    look = "cd /data && cat file && stat -c '%n %a %u:%g' *"
    assert docker_engine.docker("exec", owner, "sh", "-c", look) == f"hello\nfile 600 {user}\n"


def test_any_command_runs_in_the_container(application, containers, holdfast_image, s3_bucket):
    env = {**old_environment(s3_bucket), "HOLDFAST_STORE": f"s3://{s3_bucket.name}/elsewhere"}
    options = ["--network", "host", "--volumes-from", application.container, *environment(env)]
    before = application(DESCRIBE)

    first = json.loads(containers.run(holdfast_image, "backup", "/var/www", "--json", options=options))
    application(DAMAGE)
    second = json.loads(containers.run(holdfast_image, "restore", "/var/www", "--json", options=options))

    assert first["complete"] is second["complete"] is True
    assert application(DESCRIBE) == before
    assert all(key.startswith("elsewhere/") for key in s3_bucket.keys())  # noqa: SIM118


@pytest.mark.parametrize("user", ["0:0", "4711:4712"])
def test_cache_and_embedded_store_may_be_volumes_for_every_user(user, containers, holdfast_image, base_image):
    cache, store = containers.volume(), containers.volume()
    mounts = [f"--volume={cache}:/var/cache/holdfast", f"--volume={store}:/var/lib/holdfast", "--network=none"]

    containers.run(holdfast_image, "backup", "/usr/lib/os-release", options=[*mounts, "--user", user])
    listed = containers.run(holdfast_image, "snapshots", "--json", options=[*mounts, "--user", user])

    assert [one["name"] for one in json.loads(listed)["snapshots"]] == ["/usr/lib/os-release"]
    assert containers.run(base_image, "find", "/var/cache/holdfast", "-type", "f", options=mounts)


class LateBucket(socketserver.ThreadingTCPServer):
    """A way to a bucket that is there late: connections are dropped until it is open. It tells when the first came."""

    daemon_threads = True

    def __init__(self, endpoint):
        host, port = endpoint.removeprefix("http://").split(":")
        self.target = (host, int(port))
        self.is_open, self.was_asked = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Passage)

    @property
    def url(self):
        return "http://{}:{}".format(*self.server_address)


class Passage(socketserver.BaseRequestHandler):
    def handle(self):
        self.server.was_asked.set()
        if not self.server.is_open.is_set():
            return
        with socket.create_connection(self.server.target) as there:
            back = threading.Thread(target=self.copy, args=(there, self.request), daemon=True)
            back.start()
            self.copy(self.request, there)
            back.join()

    @staticmethod
    def copy(source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(1)
        except OSError:
            pass


@pytest.fixture
def late_bucket(s3_bucket):
    with LateBucket(s3_bucket.endpoint) as bucket:
        thread = threading.Thread(target=bucket.serve_forever, daemon=True)
        thread.start()
        yield bucket
        bucket.shutdown()
        thread.join()


def test_a_container_that_starts_with_an_empty_volume_waits_for_the_bucket_and_restores(
    application, containers, holdfast_image, docker_engine, s3_bucket, late_bucket
):
    env = {**old_environment(s3_bucket), "HOLDFAST_STORE": f"s3://{s3_bucket.name}"}
    options = ["--network", "host", "--volumes-from", application.container]
    containers.run(holdfast_image, "backup", "/var/www", options=[*options, *environment(env)])
    before = application(DESCRIBE)
    application("find /var/www -mindepth 1 -delete; chown 7:7 /var/www; chmod 700 /var/www")

    late = environment({**env, "AWS_ENDPOINT_URL_S3": late_bucket.url})
    entrypoint = ["--entrypoint", "sh", *options, *late]
    step = "holdfast restore /var/www --if-empty --wait-for-store 30s && exec cat /var/www/index.html"
    container = containers.start(holdfast_image, "-c", step, options=entrypoint)
    assert late_bucket.was_asked.wait(30)
    late_bucket.is_open.set()
    code = docker_engine.docker("wait", container).strip()

    assert code == "0", docker_engine.logs(container)
    assert docker_engine.docker("logs", container).endswith("hello\n")
    assert application(DESCRIBE) == before


def test_the_very_first_start_finds_nothing_to_restore_and_says_so(containers, holdfast_image, make_s3_bucket):
    options = ["--network", "host", "--volume", "/var/www", *environment(old_environment(make_s3_bucket(create=False)))]
    command = ["restore", "/var/www", "--if-empty", "--wait-for-store", "30s"]

    assert containers.run(holdfast_image, *command, options=options, code=4) == ""


def test_a_volume_that_is_not_empty_is_left_as_it_is(application, containers, holdfast_image, s3_bucket):
    env = {**old_environment(s3_bucket), "HOLDFAST_STORE": f"s3://{s3_bucket.name}"}
    options = ["--network", "host", "--volumes-from", application.container, *environment(env)]
    containers.run(holdfast_image, "backup", "/var/www", options=options)
    application(DAMAGE)
    before = application("ls -lR /var/www")

    command = ["restore", "/var/www", "--if-empty", "--wait-for-store", "30s"]
    containers.run(holdfast_image, *command, options=options)

    assert application("ls -lR /var/www") == before
