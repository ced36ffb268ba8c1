import hashlib
import itertools
import random

import pytest
from blake3 import blake3

from holdfast.archive.chunks import MAX_CHUNK, MIN_CHUNK, Chunker, ChunkMap, chunk_name
from holdfast.model.snapshot import RECORD

DATA = random.Random(20261120).randbytes(8 * 1024 * 1024)
# What stores written so far were cut at: another cut would store every large file anew.
CUTS = [
    341645,
    257920,
    200657,
    255936,
    337676,
    213062,
    346828,
    201086,
    309860,
    118328,
    225930,
    293563,
    244586,
    225532,
    249518,
    200292,
    341493,
    253055,
    230736,
    258507,
    273922,
    201195,
    239498,
    198922,
    205318,
    179942,
    197064,
    240902,
    217909,
    252338,
    210575,
    297740,
    197190,
    247301,
    122582,
]


def _cuts(data, feed):
    chunker = Chunker()
    cuts = []
    for filled in [*range(feed, len(data), feed), len(data)]:
        cuts += chunker.cut(data[sum(cuts) : filled], last=filled == len(data))
    return cuts


def test_the_cuts_stay_where_they_have_always_been():
    assert hashlib.sha256(DATA).hexdigest()[:16] == "d0f99bcfe39ce98a"
    assert _cuts(DATA, len(DATA)) == CUTS


@pytest.mark.parametrize("feed", [4 * 1024 * 1024, 1024 * 1024, 1_000_003, 65_536, 4_099])
def test_the_cuts_do_not_depend_on_how_it_is_fed(feed):
    assert _cuts(DATA, feed) == _cuts(DATA, len(DATA))


def test_chunks_keep_to_their_sizes():
    cuts = _cuts(DATA, 4 * 1024 * 1024)

    assert sum(cuts) == len(DATA)
    assert all(MIN_CHUNK <= cut <= MAX_CHUNK for cut in cuts[:-1])
    assert 0 < cuts[-1] <= MAX_CHUNK
    assert 128 * 1024 < len(DATA) / len(cuts) < 384 * 1024


def test_an_insertion_moves_only_the_cuts_around_it():
    def names(data):
        ends = list(itertools.accumulate(_cuts(data, len(data)), initial=0))
        return {chunk_name(data[start:end]) for start, end in itertools.pairwise(ends)}

    changed = DATA[:3_000_000] + b"kelp" + DATA[3_000_000:]

    assert len(names(changed) - names(DATA)) <= 3


def test_bytes_all_alike_are_cut_at_the_maximum():
    assert _cuts(bytes(5 * MAX_CHUNK // 2), 4 * 1024 * 1024) == [MAX_CHUNK, MAX_CHUNK, MAX_CHUNK // 2]


def _record(number):
    return RECORD.pack(blake3(number.to_bytes(8, "little")).digest(), number % 7, number, number & 0xFFFF)


def test_a_map_grows_and_finds_all_it_was_given():
    known = ChunkMap()
    for number in range(50_000):
        known.add(_record(number))

    assert len(known) == 50_000
    for number in range(0, 50_000, 97):
        assert known.get(_record(number)[:32]) == _record(number)
    assert known.get(_record(50_001)[:32]) is None


def test_names_that_begin_alike_are_told_apart():
    known = ChunkMap()
    records = [RECORD.pack(b"same8byt" + bytes([n]) * 24, n, n, n) for n in range(200)]
    for record in records:
        known.add(record)

    assert [known.get(record[:32]) for record in records] == records


def test_the_first_place_of_a_chunk_stays():
    known = ChunkMap()
    known.add(RECORD.pack(b"n" * 32, 1, 0, 5))
    known.add(RECORD.pack(b"n" * 32, 2, 0, 5))

    assert known.get(b"n" * 32) == RECORD.pack(b"n" * 32, 1, 0, 5)
    assert len(known) == 1


def test_at_its_limit_a_map_stops_learning_and_forgets_nothing():
    known = ChunkMap(limit=100)
    for number in range(1_000):
        known.add(_record(number))

    assert len(known) == 100
    assert known.get(_record(99)[:32]) == _record(99)
    assert known.get(_record(100)[:32]) is None


def test_what_fills_a_map_is_asked_once_and_not_before_it_is_needed():
    asked = []

    def fill():
        asked.append(1)
        return [_record(1)]

    known = ChunkMap(fill)
    assert not asked

    assert known.get(_record(1)[:32]) == _record(1)
    known.add(_record(2))
    assert known.get(_record(2)[:32]) == _record(2)
    assert asked == [1]
