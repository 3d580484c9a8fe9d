"""Pickled checkpoints are read as data: equal to what torch.load gives, and nothing in them ever runs."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpolicy_spec.checkpoints.errors import CheckpointError
from diffpolicy_spec.checkpoints.pickles import StoredTensor, archive, load_tensors, opcodes, read_pickled, vocabulary
from diffpolicy_spec.checkpoints.pickles.opcodes import Called, decode

RAN: list[str] = []
"""What a hostile file did in this process."""


def ran(*what: Any) -> dict[str, Any]:
    RAN.append(repr(what))
    return {}


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class SetsState:
    """Its class is imported and its __setstate__ is called where it is unpickled."""

    def __init__(self) -> None:
        self.x = 1

    def __setstate__(self, state: Any) -> None:
        ran("__setstate__")


def write(path: Path, data: bytes, records: dict[str, bytes] | None = None, **entries: bytes) -> Path:
    """A file as torch.save lays it out, with this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        for name, value in {"archive/version": b"3\n", **entries}.items():
            file.writestr(name, value)
        for key, value in (records or {}).items():
            file.writestr(f"archive/data/{key}", value)
    return path


# What is read.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_payload_is_what_was_saved(tmp_path: Path, protocol: int) -> None:
    w = torch.randn(3, 4)
    payload = {
        "cfg": {"a": 1, "b": [1.5, None, True], 3: ("x", b"y"), "big": 2**70, "empty": [(), {}, [], ""]},
        "state": OrderedDict(w=w, transposed=w.t(), part=w[1:, 2], empty=torch.zeros(0, 3), scalar=torch.tensor(2.5)),
        "kinds": {str(d): torch.ones(2).to(d) for d in (torch.float64, torch.float16, torch.bfloat16, torch.int64,
                                                        torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)},
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
        "default": defaultdict(dict, x=1),
        "counter": Counter("aab"),
        "size": w.shape,
        "numbers": (np.float64(0.25), np.int64(-3), np.bool_(True)),
        "pickles": {"epoch": pickle.dumps(3), "none": b""},
    }  # fmt: skip
    if protocol < 5:  # later ones hand arrays over in buffers of their own
        payload["array"] = np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))
    torch.save(payload, tmp_path / "x.ckpt", pickle_protocol=protocol)
    found = read_pickled(tmp_path / "x.ckpt")
    assert found["cfg"] == payload["cfg"]
    assert found["pickles"] == payload["pickles"]
    assert (found["default"], found["counter"], found["size"]) == ({"x": 1}, {"a": 2, "b": 1}, (3, 4))
    assert found["numbers"] == payload["numbers"]
    assert all(type(a) is type(b) for a, b in zip(found["numbers"], payload["numbers"], strict=True))
    if protocol < 5:
        np.testing.assert_array_equal(found["array"], payload["array"])
    for name in ("state", "kinds"):
        loaded = load_tensors(found[name])
        assert list(loaded) == list(payload[name])
        for key, value in payload[name].items():
            assert loaded[key].dtype == value.dtype
            assert torch.equal(loaded[key], value)
    assert torch.equal(found["parameter"].load(), payload["parameter"].data)


def test_omegaconf_becomes_plain(tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    plain = {"a": 1, "l": [1, {"b": None}], "i": "${a}", "n": {"f": 1.5, "s": "x", "t": True}, "none": None}
    config = omegaconf.OmegaConf.create(plain)
    omegaconf.OmegaConf.register_new_resolver("twice", lambda x: 2 * x, use_cache=True)
    config.cached = "${twice:2}"
    assert config.cached == 4  # now the config holds a cache, with tuples as its keys
    omegaconf.OmegaConf.clear_resolver("twice")
    torch.save({"cfg": config, "state_dicts": {}}, tmp_path / "x.ckpt")
    assert read_pickled(tmp_path / "x.ckpt")["cfg"] == {**plain, "cached": "${twice:2}"}


def test_omegaconf_is_not_imported(tmp_path: Path) -> None:
    """Nor dill: a file names their classes, and they need not be there."""
    import subprocess

    from upstream_fixtures import fixture

    path, _, _ = fixture("dp_unet_lowdim_global", tmp_path)
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('omegaconf', 'dill', 'hydra', 'diffusers', 'diffusion_policy')))\n"
        "from diffpolicy_spec import load_policy\n"
        f"print(load_policy({str(path)!r}).config.horizon)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "16"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=30,
)


@settings(deadline=None, max_examples=100)
@given(PLAIN, st.integers(0, 5))
def test_plain_data_is_described_as_pickle_loads_it(value: Any, protocol: int) -> None:
    found = vocabulary.plain(decode(pickle.dumps(value, protocol), vocabulary.ALLOWED), None)  # type: ignore[arg-type]
    assert repr(found) == repr(value)


def test_tensors_that_share_a_storage_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(100, 10)
    torch.save({"a": w, "b": w.view(10, 100), "c": w[3]}, tmp_path / "x.pt")
    found = read_pickled(tmp_path / "x.pt")
    assert len({tensor.key for tensor in found.values()}) == 1
    loaded = load_tensors(found)
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
    assert torch.equal(loaded["c"], w[3])


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_pickled(tmp_path / "x.pt")["w"].load(), torch.ones(3))


# What is refused, and never run.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def hostile() -> dict[str, tuple[bytes, str]]:
    """Name -> (pickle, what the message must name). Each would run something were it unpickled."""
    dumps = {
        "os.system": (Calls(os.system, "touch canary"), r"posix\.system"),
        "eval": (Calls(eval, "open('canary', 'w')"), r"(builtins|__builtin__)\.eval"),
        "a function of this file": (Calls(ran, "called"), r"test_pickles\.ran"),
        "__setstate__": (SetsState(), r"test_pickles\.SetsState"),
        "torch.load": (Calls(torch.load, "canary.pt"), r"torch\.serialization\.load"),
        "torch.hub": (Calls(torch.hub.load, "evil/repo", "x"), r"torch\.hub\.load"),
        "pickle.loads": (Calls(pickle.loads, b"cos\nsystem\n(X\x0c\x00\x00\x00touch canarytR."), r"pickle\.loads"),
        "an argument of a tensor": (Calls(torch._utils._rebuild_tensor_v2, Calls(ran, 1), 0, (1,), (1,), False, {}),
                                    r"test_pickles\.ran"),
        "an argument of a dict": (Calls(OrderedDict, Calls(ran, 1)), r"test_pickles\.ran"),
    }  # fmt: skip
    made = {name: (pickle.dumps({"x": value}, protocol=2), told) for name, (value, told) in dumps.items()}
    by_hand = {
        "what is thrown away": (b"\x80\x02cos\nsystem\n" + text("touch canary") + b"\x85R0}.", r"os\.system"),
        "STACK_GLOBAL": (
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text("touch canary") + b"\x85R.",
            r"posix\.system",
        ),
        "STACK_GLOBAL by the memo": (
            b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93" + text("touch canary") + b"\x85R.",
            r"posix\.system",
        ),
        "INST": (b"(" + text("touch canary") + b"ios\nsystem\n.", r"os\.system"),
        "OBJ": (b"(cos\nsystem\n" + text("touch canary") + b"o.", r"os\.system"),
        "NEWOBJ": (b"\x80\x02csubprocess\nPopen\n" + text("touch canary") + b"\x85\x81.", r"subprocess\.Popen"),
        "the extension registry": (b"\x80\x02\x82\xf0)R.", "opcode EXT1"),
        "a module's attribute": (b"\x80\x04\x8c\x08builtins\x8c\x0deval.__call__\x93.", r"builtins\.eval\.__call__"),
        "state of a class": (
            b"\x80\x02ccollections\nOrderedDict\n}" + text("x") + b"K\x01sb)R.",
            "sets the state of a",
        ),
        "a name that is no text": (b"\x80\x04K\x01K\x02\x93.", "not named by text"),
        "a call of a result": (b"\x80\x02ccollections\nOrderedDict\n)R)R.", "it calls a Called"),
        "a persistent id of text": (b"\x80\x02Pcanary\n.", "opcode PERSID"),
    }
    return {**made, **by_hand}


@pytest.fixture
def registered() -> Any:
    copyreg.add_extension("os", "system", 0xF0)
    yield
    copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize("name", hostile())
@pytest.mark.usefixtures("registered")
def test_code_is_refused_by_name_and_not_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RAN.clear()
    data, told = hostile()[name]
    path = write(tmp_path / "x.ckpt", data)
    read_pickled(write(tmp_path / "warm.ckpt", b"\x80\x02}.")).clear()  # zipfile imports a codec
    (tmp_path / "warm.ckpt").unlink()
    modules = set(sys.modules)
    with pytest.raises(CheckpointError, match=told) as raised:
        read_pickled(path)
    assert str(path) in str(raised.value)
    assert RAN == []
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]
    assert set(sys.modules) == modules


def test_this_hostile_file_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: unpickled, the same bytes do what they say."""
    RAN.clear()
    pickle.loads(hostile()["a function of this file"][0])
    pickle.loads(hostile()["__setstate__"][0])
    assert len(RAN) == 2


def test_pickles_in_the_payload_are_never_opened(tmp_path: Path) -> None:
    """diffusion_policy's `pickles` hold dill's bytes: they are bytes here, and that is all."""
    RAN.clear()
    inner = pickle.dumps(Calls(ran, "opened"))
    torch.save({"cfg": {}, "state_dicts": {}, "pickles": {"epoch": inner}}, tmp_path / "x.ckpt")
    assert read_pickled(tmp_path / "x.ckpt")["pickles"]["epoch"] == inner
    assert RAN == []


def test_decoding_imports_nothing() -> None:
    before = set(sys.modules)
    found = decode(b"\x80\x02cantigravity\nfly\n)R.", {"antigravity.fly"})
    assert isinstance(found, Called)
    assert str(found.function) == "antigravity.fly"
    assert set(sys.modules) == before


# Damage, and files made to take all time or memory.


def doubling(levels: int) -> bytes:
    """A list that holds the one before twice, and so on: few bytes, 2^levels values."""
    data = b"\x80\x02]q\x000"
    for i in range(levels):
        data += b"]q" + bytes([i + 1]) + b"h" + bytes([i]) + b"ah" + bytes([i]) + b"a0"
    return data + b"h" + bytes([levels]) + b"."


def tensor(key: str = "0", count: int = 4, offset: int = 0, shape: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85",
           kind: str = "FloatStorage") -> bytes:  # fmt: skip
    """A dict with one tensor, as torch.save pickles it."""
    number = b"\x8a\x08" + struct.pack("<q", count)
    place = b"\x8a\x08" + struct.pack("<q", offset)
    return (
        b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number + b"tQ" + place + shape + stride
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


HUGE = b"\x8a\x08" + struct.pack("<q", 2**62)

BOMBS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "damaged or truncated"),
    "no end": (b"\x80\x02}", "damaged or truncated"),
    "more after the end": (b"\x80\x02}.}.", "left over"),
    "two values": (b"\x80\x02}}.", "left over"),
    "an open mark": (b"\x80\x02(}.", "left over"),
    "an unknown opcode": (b"\x80\x02\xff.", "damaged or truncated"),
    "nested lists": (b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", "nested more than"),
    "nested tuples": (b"\x80\x02)" + b"\x85" * 20_000 + b".", "nested more than"),
    "nested tuples as a key": (b"\x80\x02})" + b"\x85" * 20_000 + b"Ns.", "as a key"),
    "doubling lists": (doubling(60), "unfolds to more than"),
    "a list that holds itself": (b"\x80\x02]q\x00h\x00a.", "nested more than"),
    "a memo far out": (b"\x80\x02}r\xff\xff\xff\x7f0j\xff\xff\xff\x7fK\x01.", "left over"),
    "a text longer than the file": (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged or truncated"),
    "bytes longer than the file": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.", "damaged or truncated"),
    "a number of many digits": (b"I" + b"9" * 10_000 + b"\n.", "damaged or truncated"),
    "no dict": (b"\x80\x02].", "holds a list"),
    "a claimed storage": (tensor(count=2**61), "claims .* numbers"),
    "a storage of another size": (tensor(count=3), "claims 3 numbers"),
    "another type of storage": (tensor(kind="DoubleStorage"), "claims 4 numbers of torch.float64, has 16 bytes"),
    "a type of storage that is none": (tensor(kind="float32"), "a storage in it is not described"),
    "a missing storage": (tensor(key="7"), "the storage 7 that a tensor names is missing"),
    "a storage by a path": (tensor(key="../../x"), "is missing"),
    "a place beyond the storage": (tensor(offset=1), "reaches beyond its storage"),
    "a negative place": (tensor(offset=-1), "no valid shape"),
    "a huge shape": (tensor(shape=HUGE + b"\x85"), "no valid shape"),
    "a shape larger than the storage": (tensor(shape=b"M\xff\xff\x85", stride=b"K\x00\x85"), "reaches beyond"),
    "shape and strides that differ": (tensor(shape=b"K\x02K\x02\x86"), "no valid shape"),
    "a shape of text": (tensor(shape=text("a") + b"\x85"), "no valid shape"),
    "a NumPy array that claims more": (
        b"\x80\x02}" + text("a") + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85tR(K\x01"
        + HUGE + b"\x85cnumpy\ndtype\n" + text("f4") + b"\x85R\x89" + b"c_codecs\nencode\n" + text("aaaa")
        + text("latin1") + b"\x86Rtbs.", "array in it is damaged",
    ),
    "a NumPy array of objects": (
        b"\x80\x02}" + text("a") + b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n" + text("O8") + b"\x85RNtRs.",
        "not numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_told_and_take_no_memory(name: str, tmp_path: Path) -> None:
    data, told = BOMBS[name]
    path = write(tmp_path / "x.ckpt", data, {"0": bytes(16)})
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=told) as raised:
            read_pickled(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(raised.value)) < 600 + len(str(path))
    assert peak < 300 * 2**20


def test_opcodes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcodes, "MAX_OPCODES", 100)
    read_pickled(write(tmp_path / "x.pt", b"\x80\x02" + b"N0" * 48 + b"}."))
    with pytest.raises(CheckpointError, match="more than 100 opcodes"):
        read_pickled(write(tmp_path / "x.pt", b"\x80\x02" + b"N0" * 49 + b"}."))


def test_tensors_larger_than_the_file_are_not_made(tmp_path: Path) -> None:
    """Each of many views is small enough; together they are not."""
    w = torch.zeros(1000, 1000)
    torch.save({f"{i}": w.t() for i in range(50)}, tmp_path / "x.pt")
    found = read_pickled(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="its tensors are larger than the file"):
        load_tensors(found)


def saved(tmp_path: Path) -> tuple[Path, bytes]:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(1000.0), "v": torch.ones(3)}, path)
    return path, path.read_bytes()


def load(path: Path) -> dict[str, torch.Tensor]:
    return load_tensors(read_pickled(path))


def test_truncated_anywhere(tmp_path: Path) -> None:
    path, data = saved(tmp_path)
    for size in [*range(0, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"truncated|empty|not a file written"):
            load(path)


def test_a_flipped_bit_anywhere_is_told_or_harmless(tmp_path: Path) -> None:
    """Checksums see what is wrong in the pickle and in weights; in what is not read it does not matter."""
    path, data = saved(tmp_path)
    right, told = load(path), 0
    for at in range(0, len(data), 41):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            found = load(path)
        except CheckpointError:
            told += 1
        else:
            assert all(torch.equal(value, right[name]) for name, value in found.items())
    assert told > 80  # the 4000 bytes of weights alone are hit 97 times


def rewritten(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> Path:
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            change(target, info, source.read(info))
    return path


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    rewritten(path, lambda z, i, d: z.writestr(i.filename, d, compress_type=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="is compressed or encrypted"):
        read_pickled(path)


def test_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    other = b"big" if sys.byteorder == "little" else b"little"
    rewritten(path, lambda z, i, d: z.writestr(i.filename, other if i.filename.endswith("byteorder") else d))
    with pytest.raises(CheckpointError, match=f"byte order b'{other.decode()}'"):
        read_pickled(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_stand_twice_are_refused(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/data.pkl", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match="a name stands twice"):
        read_pickled(path)
    path, _ = saved(tmp_path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("y/data.pkl", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match="2 pickles named"):
        read_pickled(path)


def test_sizes_are_checked_before_they_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.pt", b"\x80\x02}.")
    monkeypatch.setattr(archive, "MAX_PICKLE", 3)
    with pytest.raises(CheckpointError, match="more than the 3 that are read"):
        read_pickled(path)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x05\x06")
    data[at + 12 : at + 16] = struct.pack("<I", 2**31)
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="its zip directory claims 2147483648 bytes"):
        read_pickled(path)


def test_a_large_zip_directory_is_found(tmp_path: Path) -> None:
    """Files above 4 GiB say their directory's size in another record (zip64), which torch.save always writes."""
    path, data = saved(tmp_path)
    at = data.rfind(b"PK\x05\x06")
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:at] + end)
    assert torch.equal(load(path)["w"], torch.arange(1000.0))


def test_a_tensor_stays_in_its_file(tmp_path: Path) -> None:
    path, data = saved(tmp_path)
    found = read_pickled(path)
    assert isinstance(found["w"], StoredTensor)
    assert (found["w"].shape, found["w"].dtype, found["w"].numel) == ((1000,), torch.float32, 1000)
    path.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        found["w"].load()
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        found["w"].load()
