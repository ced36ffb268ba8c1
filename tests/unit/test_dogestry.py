"""The layout dogestry: what the old program left behind, what we write, and what nobody should believe."""

import base64
import errno
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backups import memory_bucket
from dogestry_rig import EMPTY, old_id, old_json, push_old, put_old, tar_of
from faulty import WRITES, FaultyBucket
from holdfast.errors import DamageError, NoSpaceError, NotFoundError, TargetError, Unavailable, UsageError
from holdfast.images import layerfile
from holdfast.images.dogestry import EMPTY_LAYER, image_json, layer_ids, read_image, trusted_config
from holdfast.model.digest import Digest
from holdfast.model.urls import BucketUrl
from holdfast.progress import Progress
from holdfast.storage.backends import open_bucket
from holdfast.storage.dogestry import LARGEST_JSON, DogestryLayout

MIB = 1024 * 1024
ONE, TWO, THREE = tar_of(one=b"1"), tar_of(two=b"22" * 1000), tar_of(three=b"")


@pytest.fixture(params=["memory", "disk", "prefix"])
def bucket(request, tmp_path):
    if request.param == "disk":
        return open_bucket(BucketUrl.parse(f"file://{tmp_path}/store"))
    bucket = memory_bucket()
    return open_bucket(BucketUrl.parse(f"{bucket.url}/some/where")) if request.param == "prefix" else bucket


@pytest.fixture
def layout(bucket):
    return DogestryLayout(bucket)


def _read(layout, image_id, spool_dir=None):
    return read_image(layout, image_id, spool_dir, Progress())


def _contents(image):
    return [b"".join(layer.open()) for layer in image.layers]


def _digests(*layers):
    return [str(Digest.of(layer)) for layer in layers]


def _config(*layers, **more):
    said = {"architecture": "arm64", "os": "linux", "created": "2024-05-06T07:08:09Z", "config": {"Cmd": ["/a"]}}
    said["rootfs"] = {"type": "layers", "diff_ids": _digests(*layers)}
    return json.dumps(said | more).encode()


def _push(layout, config, layers, tag=None):
    """Write an image of our own as push does, and give its ids."""
    ids = layer_ids(Digest.of(config), [Digest.of(layer) for layer in layers])
    for number, layer in enumerate(layers or [EMPTY_LAYER]):
        layout.put_image(ids[number], image_json(ids, number, config, len(layer)), iter([layer]), len(layer))
    if tag:
        layout.set_tag(*tag, ids[-1])
    return ids


# What the old program wrote


@pytest.mark.parametrize("with_sum", [True, False])
def test_an_old_image_becomes_one_that_engines_of_today_load(layout, with_sum, tmp_path):
    ids = push_old(layout.bucket, [ONE, EMPTY, TWO], "opsgoodies.com/docker-repo/hipache/latest", with_sum=with_sum)
    progress = Progress()
    spool_dir = tmp_path / "spool"
    spool_dir.mkdir()

    assert layout.tag("opsgoodies.com/docker-repo/hipache", "latest") == ids[-1]
    image = read_image(layout, ids[-1], str(spool_dir), progress)

    assert _contents(image) == _contents(image) == [ONE, TWO]
    assert [layer.size for layer in image.layers] == [len(ONE), len(TWO)]
    assert [str(layer.diff_id) for layer in image.layers] == _digests(ONE, TWO)
    config = json.loads(image.config)
    assert config["rootfs"] == {"type": "layers", "diff_ids": _digests(ONE, TWO)}
    assert config["config"] == {"Cmd": ["/bin/app"], "Env": ["A=<&>"]}
    assert (config["architecture"], config["os"]) == ("amd64", "linux")
    entry = {"created": "2014-10-01T20:46:07.263351912Z", "created_by": "/bin/sh -c #(nop) CMD [/bin/app]"}
    assert config["history"] == [entry, entry | {"empty_layer": True}, entry]
    assert not {"id", "parent", "Size"} & config.keys()
    assert [(part.name, part.state, part.done) for part in progress.parts] == [
        (f"layer {one[:12]}", "done", len(layer)) for one, layer in zip(ids, (ONE, EMPTY, TWO), strict=True)
    ]
    assert image.bytes_read == len(ONE) + len(EMPTY) + len(TWO)
    assert not os.listdir(spool_dir)  # what lies there has no name


def test_the_config_is_the_one_that_an_engine_makes_of_such_an_image():
    """The id was given by Docker 20.10 when it loaded this very image."""
    layout = DogestryLayout(memory_bucket())
    layers = [layer.ljust(10240, b"\0") for layer in (_plain("a.txt", b"dg-alpha"), _plain("c", b"dg-c"))]
    ids = [hashlib.sha256(word).hexdigest() for word in (b"1", b"3")]
    for number, layer in enumerate(layers):
        said = {
            "id": ids[number],
            "created": f"2016-01-02T03:04:0{number * 2}.12Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) a && b <c>"]},
            "docker_version": "1.12.0",
            "author": "me",
            "config": {"Cmd": ["/a"], "Env": ["A=<&>"]},
            "architecture": "amd64",
            "os": "linux",
            "Size": 3,
            "comment": "c é",
        } | ({"parent": ids[0]} if number else {})
        layout.put_image(ids[number], json.dumps(said).encode(), iter([layer]), len(layer))

    image = _read(layout, ids[1])

    assert Digest.of(image.config).hex == "f1ed18e566bb331229dc65fc4a0313f93d4abd3bc8950bbde69372425e07f8dd"


def _plain(name, data):
    """A file in a tar, without owner and time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def test_what_the_json_leaves_out_is_what_it_meant():
    layout = DogestryLayout(memory_bucket())
    one = old_id(1)
    said = {"id": one, "parent": "", "container_config": None, "config": None, "author": None}
    layout.put_image(one, json.dumps(said).encode(), iter([ONE]), len(ONE))

    config = json.loads(_read(layout, one).config)

    assert (config["os"], config["architecture"], config["history"]) == ("linux", "amd64", [{}])


def test_layers_may_be_gzipped(layout):
    ids = push_old(layout.bucket, [gzip.compress(ONE), TWO])

    image = _read(layout, ids[-1])

    assert _contents(image) == [ONE, TWO]
    assert [str(layer.diff_id) for layer in image.layers] == _digests(ONE, TWO)


def test_layers_with_large_files_long_names_and_other_things(layout, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ("n" * 200)).write_bytes(b"x" * 1000)
    os.symlink("y" * 150, tmp_path / "in" / "link")
    os.mkfifo(tmp_path / "in" / "fifo")
    os.link(tmp_path / "in" / ("n" * 200), tmp_path / "in" / "other")
    layers = [
        subprocess.run(
            ["tar", f"--format={form}", "-cf-", "-C", tmp_path, "in"], check=True, capture_output=True
        ).stdout
        for form in ("gnu", "pax", "posix", "oldgnu")
    ]
    ids = push_old(layout.bucket, [*layers, tar_of(big=os.urandom(9 * MIB)), THREE.removesuffix(bytes(1024))])

    assert _contents(_read(layout, ids[-1]))[:4] == layers


def test_the_exact_config_is_taken_where_the_engine_saved_it(layout):
    """Engines from 1.10 to 24 saved the config beside the chain, and the old program put it below images."""
    ids = [old_id(number) for number in range(2)]
    run = {"Cmd": ["/a"], "Env": ["B=1"], "Image": "", "Labels": None}
    right = _config(ONE, TWO, architecture="amd64", config={"Cmd": ["/a"], "Env": ["B=1"], "Healthcheck": {"Test": []}})
    others = [
        _config(ONE, TWO, architecture="amd64", config={"Cmd": ["/b"], "Env": ["B=1"]}),
        _config(ONE, TWO, architecture="amd64", config={"Cmd": ["/a"], "Env": ["B=1"]}, created="2024-05-06T07:08:10Z"),
        _config(TWO, ONE, architecture="amd64", config=run),
        _config(ONE, architecture="amd64", config=run),
        _config(ONE, TWO, architecture="arm64", config=run),
        b"{",
        b"[" * 100_000,
        b'{"rootfs": {"diff_ids": ["x"]}}',
    ]
    for number, layer in enumerate((ONE, TWO)):
        said = {"id": ids[number], "created": "1970-01-01T00:00:00Z", "os": "linux"}
        if number:
            said = json.loads(_config(architecture="amd64", config=run)) | {"id": ids[1], "parent": ids[0]}
        layout.put_image(ids[number], json.dumps(said).encode(), iter([layer]), len(layer))
    for config in others:
        put_old(layout.bucket, f"images/{Digest.of(config).hex}.json", config, with_sum=True)
    layout.bucket.put("images/manifest.json", b"[]")
    layout.bucket.put(f"images/{old_id('altered')}.json", right)

    made = _read(layout, ids[1])
    layout.bucket.put(f"images/{Digest.of(right).hex}.json", right)
    exact = _read(layout, ids[1])

    assert json.loads(made.config)["config"] == run
    assert exact.config == right
    assert _contents(exact) == _contents(made) == [ONE, TWO]


# Finding


def test_an_empty_bucket_and_one_of_another_layout(layout):
    assert not layout.is_there()
    layout.bucket.put("docker/registry/v2/blobs/x", b"")
    assert not layout.is_there()
    assert list(layout.tags()) == []
    assert layout.tag("app", "latest") is None
    assert layout.full_id("abcd") is layout.full_id(old_id(1)) is None
    with pytest.raises(NotFoundError, match=old_id(1)):
        layout.image(old_id(1))

    push_old(layout.bucket, [ONE])

    assert layout.is_there()


def test_tags_of_any_depth_without_what_lies_among_them(layout):
    ids = push_old(layout.bucket, [ONE], "hipache/latest", with_sum=True)
    tags = {("hipache", "latest"): ids[0]}
    for number, name in enumerate(("hipache", "team/app", "opsgoodies.com:5000/docker-repo/hipache", "a.b/c_d/e")):
        layout.set_tag(name, f"v{number}.sums", old_id(number))
        tags[name, f"v{number}.sums"] = old_id(number)
    layout.bucket.put("repositories/garbled/1", b"no id at all")
    layout.bucket.put("repositories/garbled/2", b"x" * MIB)
    layout.bucket.put("repositories/with-newline/1", ids[0].encode() + b"\n")
    layout.bucket.put("repositories/a b/1", ids[0].encode())
    layout.bucket.put("repositories/é/1", ids[0].encode())
    layout.bucket.put("repositories/alone", ids[0].encode())
    tags |= {("garbled", "1"): None, ("garbled", "2"): None, ("with-newline", "1"): ids[0]}

    assert {(name, tag): found for name, tag, found in layout.tags()} == tags
    assert layout.tag("with-newline", "1") == ids[0]
    assert layout.tag("opsgoodies.com:5000/docker-repo", "hipache") is None
    assert layout.tag("hipache", "latest.sum") is None
    for tag in ("1", "2"):
        with pytest.raises(DamageError, match="garbled"):
            layout.tag("garbled", tag)


def test_images_by_the_beginning_of_their_id_among_more_than_a_thousand(layout):
    for number in range(1100):
        layout.bucket.put(f"images/{number:04x}{old_id(number)[4:]}/json", b"{}")
    layout.bucket.put("images/manifest.json", b"[]")
    layout.bucket.put("images/abcdef", b"")
    layout.bucket.put("images/abcdef0/json", b"")
    for number in range(1100):
        layout.bucket.put(f"repositories/many/{number}", old_id(number).encode())

    assert layout.full_id("044b") == f"044b{old_id(1099)[4:]}"
    assert layout.full_id(f"044b{old_id(1099)[4:]}") == f"044b{old_id(1099)[4:]}"
    assert layout.full_id("044c") is layout.full_id("abcdef") is layout.full_id("man") is None
    with pytest.raises(UsageError, match=r"16 images .* begin with '002'") as raised:
        layout.full_id("002")
    assert f"0020{old_id(0x20)[4:15]}" in raised.value.hint
    assert {(tag, found) for _, tag, found in layout.tags()} == {(str(n), old_id(n)) for n in range(1100)}


@pytest.mark.parametrize("name", ["../images", "a/../b", "a//b", "", "/a", "a/", "a b", "a\n", ".", "a/./b"])
def test_names_that_lead_elsewhere(name):
    layout = DogestryLayout(memory_bucket())

    assert layout.tag(name, "latest") is layout.tag("app", name) is None
    for pair in ((name, "latest"), ("app", name), ("app", "1.sum")):
        with pytest.raises(UsageError):
            layout.set_tag(*pair, old_id(1))


@pytest.mark.parametrize("image_id", ["", "..", "../x", "abcd", old_id(1) + "/..", old_id(1).upper(), old_id(1) + "\n"])
def test_ids_that_are_none(image_id):
    layout = DogestryLayout(memory_bucket())

    for work in (layout.image, layout.open_layer, layout.has_layer, lambda one: layout.set_tag("a", "1", one)):
        with pytest.raises(UsageError):
            work(image_id)


# What nobody should believe


def _put_json(layout, image_id, json_bytes, layer=ONE):
    layout.put_image(image_id, json_bytes, iter([layer]), len(layer))


def test_chains_that_are_none(layout):
    a, b, c = (old_id(word) for word in "abc")
    _put_json(layout, a, old_json(a, b))
    for broken, message in (
        (old_json(b, a), "circle"),
        (old_json(b, b), "circle"),
        (old_json(b, c), f"parent {c} is missing"),
        (old_json(b, "../../repositories"), "no image's id"),
        (old_json(c), "of another image"),
        (b"{", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
        (b'{"id": 5}', "cannot be read"),
        (b'{"parent": ["x"]}', "cannot be read"),
        (b" " * (LARGEST_JSON + 1), "larger than"),
        (old_json(b, created=[1]), "cannot be read"),
    ):
        _put_json(layout, b, broken)
        with pytest.raises(DamageError, match=message) as raised:
            _read(layout, a)
        assert b in str(raised.value)
    _put_json(layout, b, old_json(b))
    assert len(_read(layout, a).layers) == 2


def test_an_endless_chain_ends(layout):
    layout = DogestryLayout(memory_bucket())
    ids = [old_id(number) for number in range(1002)]
    for one, parent in pairwise(ids):
        layout.put_json(one, old_json(one, parent))

    with pytest.raises(DamageError, match="more images below another"):
        _read(layout, ids[0])


def test_a_chain_whose_history_is_too_long():
    layout = DogestryLayout(memory_bucket())
    ids = [old_id(number) for number in range(8)]
    for one, parent in pairwise(ids):
        layout.put_json(one, old_json(one, parent, comment="x" * MIB))

    with pytest.raises(DamageError, match="more images below another"):
        _read(layout, ids[0])


def test_a_layer_that_is_missing_is_named(layout):
    ids = push_old(layout.bucket, [ONE, TWO, THREE])
    layout.bucket.delete(f"images/{ids[1]}/layer.tar")

    with pytest.raises(DamageError, match=f"image {ids[1]} .* has no layer.tar"):
        _read(layout, ids[2])


@pytest.mark.parametrize(
    "layer",
    [
        b"",
        TWO[:100],
        TWO[:512],
        TWO[:700],
        TWO[:-1500],
        b"x" * 600,
        os.urandom(2000),
        gzip.compress(TWO)[:-9],
        gzip.compress(TWO[:-1500]),
        gzip.compress(TWO)[:-4] + b"abcd",
        gzip.compress(b""),
    ],
)
def test_a_layer_that_was_cut_short_or_is_none_is_named(layout, layer, tmp_path):
    ids = push_old(layout.bucket, [ONE, layer])
    progress = Progress()

    with pytest.raises(DamageError, match=f"layer {ids[1]} of image {ids[1]} .* is damaged"):
        read_image(layout, ids[1], str(tmp_path), progress)
    assert [part.state for part in progress.parts] == ["done", "failed"]


def test_hostile_headers_take_no_memory():
    block = bytearray(tar_of(x=b"")[:512])
    block[156:157] = b"x"
    block[124:136] = b"77777777777 "
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    layout = DogestryLayout(memory_bucket())
    ids = push_old(layout.bucket, [bytes(block) + bytes(4 * MIB)])

    with pytest.raises(DamageError, match="header of 8589934591 bytes"):
        _read(layout, ids[0])


@given(st.binary(max_size=3000), st.integers(0, 3000))
@settings(deadline=None)
def test_any_bytes_as_a_layer_are_read_or_refused(data, at):
    whole = bytearray(TWO)
    whole[at : at + len(data)] = data
    layout = DogestryLayout(memory_bucket())
    ids = push_old(layout.bucket, [bytes(whole)])

    try:
        image = _read(layout, ids[0])
    except DamageError:
        return
    assert [Digest.of(content) for content in _contents(image)] == [layer.diff_id for layer in image.layers]


# The way back


def test_an_image_of_our_own_comes_back_as_it_was(layout):
    config = _config(ONE, TWO, TWO, history=[{"created_by": "x"}], variant="v8")

    ids = _push(layout, config, [ONE, TWO, TWO], ("team/app", "1.0"))

    assert len(set(ids)) == 3
    assert layout.full_id(ids[2][:7]) == layout.tag("team/app", "1.0") == ids[2]
    assert all(layout.has_layer(one) for one in ids)
    image = _read(layout, ids[2])
    assert (image.config, image.bytes_read) == (config, 0)
    assert _contents(image) == [ONE, TWO, TWO]
    assert layout.bucket.get(f"images/{ids[0]}/VERSION", limit=10) == b"1.0"
    assert layout.bucket.get("repositories/team/app/1.0", limit=100) == ids[2].encode()
    top, below = json.loads(layout.image(ids[2])), json.loads(layout.image(ids[1]))
    assert (top["id"], top["parent"], top["architecture"], top["config"]) == (ids[2], ids[1], "arm64", {"Cmd": ["/a"]})
    assert below == {
        "id": ids[1],
        "parent": ids[0],
        "created": "1970-01-01T00:00:00Z",
        "container_config": {},
        "Size": len(TWO),
    }
    assert "parent" not in json.loads(layout.image(ids[0]))


def test_an_image_without_layers(layout):
    config = _config()
    (only,) = _push(layout, config, [])

    image = _read(layout, only)

    assert (image.config, image.layers) == (config, ())


def test_images_share_what_they_have_in_common():
    one, other = _config(ONE, TWO, THREE), _config(ONE, TWO, THREE, config={"Cmd": ["/b"]})
    digests = [Digest.of(layer) for layer in (ONE, TWO, THREE)]

    ids, others = layer_ids(Digest.of(one), digests), layer_ids(Digest.of(other), digests)

    assert ids[:2] == others[:2]
    assert ids[2] != others[2]
    assert image_json(ids, 1, one, 5) == image_json(others, 1, other, 5)
    assert layer_ids(Digest.of(one), digests[:2])[1] != ids[1]  # it would not be the top of another


def test_a_layer_of_our_own_that_is_altered_missing_or_cut_short(layout):
    config = _config(ONE, TWO)
    ids = _push(layout, config, [ONE, TWO])
    for layer in (TWO[:-1], TWO + b"x", b"", THREE):
        layout.put_layer(ids[1], iter([layer]), len(layer))
        image = _read(layout, ids[1])
        with pytest.raises(DamageError, match=f"layer {ids[1]} of image {ids[1]} .* is altered"):
            list(image.layers[1].open())
        assert b"".join(image.layers[0].open()) == ONE

    layout.bucket.delete(f"images/{ids[0]}/layer.tar")
    with pytest.raises(DamageError, match=f"layer {ids[0]} of image {ids[1]} is missing"):
        _read(layout, ids[1])


def test_a_config_of_our_own_that_is_altered(layout):
    config = _config(ONE)
    (only,) = _push(layout, config, [ONE])
    whole = json.loads(layout.image(only))
    for wrong in (
        base64.b64encode(_config(ONE, config={"Cmd": ["/evil"]})).decode(),
        base64.b64encode(_config(TWO)).decode(),
        base64.b64encode(b"{}").decode(),
        base64.b64encode(b"{").decode(),
        "no base64 !",
        "é",
        "",
    ):
        layout.put_json(only, json.dumps(whole | {"io.holdfast.config": wrong}).encode())
        with pytest.raises(DamageError, match=f"image {only} "):
            _read(layout, only)


def test_a_json_of_our_own_under_another_id(layout):
    (only,) = _push(layout, _config(ONE), [ONE])
    other = old_id("other")
    _put_json(layout, other, layout.image(only))

    with pytest.raises(DamageError, match="of another image"):
        _read(layout, other)


def test_a_config_that_is_too_large_for_the_layout():
    config = _config(ONE, author="x" * 3 * MIB)
    ids = layer_ids(Digest.of(config), [Digest.of(ONE)])

    with pytest.raises(UsageError, match="too large"):
        image_json(ids, 0, config, len(ONE))


configs = st.fixed_dictionaries(
    {"rootfs": st.fixed_dictionaries({"diff_ids": st.lists(st.binary(max_size=2).map(lambda b: str(Digest.of(b))))})},
    optional={
        "created": st.text(max_size=5),
        "architecture": st.text(max_size=5),
        "os": st.text(max_size=5),
        "config": st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.none() | st.integers(0, 9)),
        "io.holdfast.config": st.text(max_size=5),
        "id": st.text(max_size=5),
    },
).map(lambda said: (json.dumps(said).encode(), [Digest.parse(one) for one in said["rootfs"]["diff_ids"]]))


@given(configs, configs)
@settings(deadline=None)
def test_any_config_comes_back_and_ids_depend_on_nothing_else(one, other):
    config, diff_ids = one
    ids = layer_ids(Digest.of(config), diff_ids)

    assert ids == layer_ids(Digest.of(config), tuple(diff_ids))
    assert len(set(ids)) == len(ids) == max(len(diff_ids), 1)
    for number in range(len(ids)):
        json_bytes = image_json(ids, number, config, 7)
        assert json_bytes == image_json(ids, number, config, 7)
        assert json.loads(json_bytes)["id"] == ids[number]
        assert trusted_config(json_bytes) == (config if number == len(ids) - 1 else None)
    assume(one != other)
    assert layer_ids(Digest.of(other[0]), other[1])[-1] != ids[-1]


# What goes wrong on the way


def test_a_push_that_dies_at_any_step_leaves_the_tag_as_it_was():
    before, after = _config(ONE), _config(ONE, TWO)
    step = 0
    while True:
        step += 1
        inner = memory_bucket()
        old = _push(DogestryLayout(inner), before, [ONE], ("app", "1"))[-1]
        faulty = FaultyBucket(inner, at=step, kinds=WRITES, how="dead")
        layout = DogestryLayout(inner)
        try:
            new = _push(DogestryLayout(faulty), after, [ONE, TWO], ("app", "1"))[-1]
        except Unavailable:
            assert layout.tag("app", "1") == old
            ids = layer_ids(Digest.of(after), [Digest.of(ONE), Digest.of(TWO)])
            assert all(layout.has_layer(one) for one in ids if layout.has_image(one))
            continue
        assert layout.tag("app", "1") == new
        assert _contents(_read(layout, new)) == [ONE, TWO]
        assert step == 8  # layer, VERSION and json of two images, and the tag: each of them failed once
        return


@pytest.mark.parametrize("kind", ["get_range", "open_stream", "piece", "size", "names"])
def test_a_bucket_that_fails_while_it_is_read(kind):
    inner = memory_bucket()
    ids = push_old(inner, [ONE, TWO], "app/1")
    own = _push(DogestryLayout(inner), _config(ONE), [ONE])[-1]
    at = 0
    while True:
        at += 1
        faulty = FaultyBucket(inner, at=at, kinds=frozenset({kind}), how="once")
        layout = DogestryLayout(faulty)
        try:
            layout.tag("app", "1")
            layout.full_id("abcd")
            image = _read(layout, ids[1])
            assert _contents(image) == [ONE, TWO]
            assert _contents(_read(layout, own)) == [ONE]
        except Unavailable:
            continue
        assert not faulty.hit
        assert at > 1
        return


def test_a_checksum_beside_a_tag_stays_right(layout):
    """The old program believes it: it would not set the tag back to what the checksum says it is."""
    ids = push_old(layout.bucket, [ONE], "app/1", with_sum=True)

    layout.set_tag("app", "1", old_id("new"))
    layout.set_tag("app", "2", ids[0])

    found = layout.bucket.get("repositories/app/1.sum", limit=100).decode()
    assert found == hashlib.sha1(old_id("new").encode()).hexdigest()
    assert [key.key for key in layout.bucket.objects("repositories")] == [
        "repositories/app/1",
        "repositories/app/1.sum",
        "repositories/app/2",
    ]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EIO, TargetError)])
def test_a_disk_that_is_full_or_broken(monkeypatch, tmp_path, number, kind):
    layout = DogestryLayout(memory_bucket())
    ids = push_old(layout.bucket, [ONE])

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(layerfile.os, "pwrite", fail)
    with pytest.raises(kind, match=str(tmp_path)) as raised:
        _read(layout, ids[0], str(tmp_path))
    assert type(raised.value) is kind
    assert "--tempdir" in raised.value.hint


def test_a_directory_for_temporary_files_that_is_not_there(tmp_path):
    layout = DogestryLayout(memory_bucket())
    ids = push_old(layout.bucket, [ONE])

    with pytest.raises(TargetError, match="nowhere"):
        _read(layout, ids[0], str(tmp_path / "nowhere"))
