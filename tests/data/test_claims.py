"""Chunks and sizes of files from strangers, before anything is made of them."""

import bz2
import gzip
import lzma
import struct
import zlib

import numcodecs
import numpy as np
import pytest
import zarr

from diffpolicy_spec.data import DataError, read_replay_buffer, write_replay_buffer
from diffpolicy_spec.data.claims import FREE_BYTES, check_claim
from diffpolicy_spec.data.zarr_chunks import ChunkError, check_chunk

VALUES = np.random.default_rng(0).normal(size=(1000, 3))
CODECS = [numcodecs.Blosc(), numcodecs.Zstd(), numcodecs.LZ4(), numcodecs.Zlib(), numcodecs.GZip(), numcodecs.BZ2(),
          numcodecs.LZMA()]  # fmt: skip


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.codec_id)
def test_whole_chunks_pass(codec):
    for values in (VALUES, np.zeros((200, 3)), np.zeros(50_000)):
        check_chunk(codec.codec_id, bytes(codec.encode(np.ascontiguousarray(values))), values.nbytes, "0.0")


@pytest.mark.parametrize("size", [0, 3, 15, 16, 100, -1])
def test_blosc_would_read_beyond_a_truncated_chunk(size):
    data = bytes(numcodecs.Blosc().encode(VALUES))
    with pytest.raises(ChunkError, match="truncated"):
        check_chunk("blosc", data[:size], VALUES.nbytes, "0.0")


BOMB = bytes(200 << 20)


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ("zlib", zlib.compress(BOMB)),
        ("gzip", gzip.compress(BOMB)),
        ("gzip", gzip.compress(BOMB[: 20 << 20]) * 10),
        ("bz2", bz2.compress(BOMB)),
        ("bz2", bz2.compress(BOMB[: 20 << 20]) * 10),
        ("lzma", lzma.compress(BOMB, preset=0)),
        ("zstd", bytes(numcodecs.Zstd().encode(np.frombuffer(BOMB, "u1")))),
        ("zstd", b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 60) + bytes(9)),
        ("lz4", struct.pack("<i", 2**31 - 1) + bytes(60)),
    ],
)
def test_bombs_are_seen(codec, data):
    with pytest.raises(ChunkError, match=r"would unpack to more than 67 MB"):
        check_chunk(codec, data, 24_000, "0.0")
    check_chunk(codec, data[:10], 1 << 62, "0.0")  # a chunk of this size may be that large


def test_claims():
    check_claim(FREE_BYTES, 0, "a")  # zeros take no space
    check_claim(10**9, 10**6, "a")
    with pytest.raises(DataError, match="claims 1,000 MB, of which only 1,000 bytes are stored"):
        check_claim(10**9, 1000, "a")


def test_every_way_to_a_chunk_is_watched(tmp_path):
    """A chunk is checked wherever zarr reads it from: a folder, a zip, nested keys."""
    data = {"action": VALUES[:, :2], "state": VALUES}
    write_replay_buffer(tmp_path / "a.zarr", data, [1000])
    root = zarr.open_group(tmp_path / "a.zarr", mode="r+")
    del root["data"]["state"]
    root["data"].create_array("state", data=VALUES, chunk_key_encoding={"name": "v2", "separator": "/"})
    assert len(read_replay_buffer(tmp_path / "a.zarr", {"state": 3})) == 1
    (chunk,) = [p for p in (tmp_path / "a.zarr" / "data" / "state").rglob("*") if p.is_file() and "." not in p.name]
    chunk.write_bytes(chunk.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"'data/state' cannot be read: ChunkError: chunk 0 has .* truncated"):
        read_replay_buffer(tmp_path / "a.zarr", {"state": 3})
