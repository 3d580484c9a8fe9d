"""Checkpoints whose pickle carries code, or takes all time or memory; code would leave a file `canary`."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

Made = tuple[str, str, Callable[[Path], Path]]

_COMMAND = "touch canary"
_PYTHON = "open('canary', 'w').close()"


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def calls(module: str, name: str, *args: str) -> bytes:
    """GLOBAL, arguments, REDUCE."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(text, args)) + b"tR"


def code() -> dict[str, bytes]:
    """Name -> opcodes that leave one object on the stack, and the canary on the disk."""
    forms = {
        "os.system": calls("os", "system", _COMMAND),
        "posix.system": calls("posix", "system", _COMMAND),
        "nt.system": calls("nt", "system", _COMMAND),
        "builtins.eval": calls("builtins", "eval", f"exec({_PYTHON!r})"),
        "builtins.exec": calls("builtins", "exec", _PYTHON),
        "__builtin__.eval": calls("__builtin__", "eval", f"exec({_PYTHON!r})"),
        "builtins.__import__": calls("builtins", "__import__", "antigravity"),
        "builtins.open": calls("builtins", "open", "canary", "w"),
        "builtins.compile": calls("builtins", "compile", _PYTHON, "x", "exec"),
        "subprocess.Popen": b"csubprocess\nPopen\n(]" + text("touch") + b"a" + text("canary") + b"atR",
        "subprocess.getoutput": calls("subprocess", "getoutput", _COMMAND),
        "runpy.run_path": calls("runpy", "run_path", "evil.py"),
        "shutil.rmtree": calls("shutil", "rmtree", "valuable"),
        "os.mkdir": calls("os", "mkdir", "canary"),
        "pty.spawn": calls("pty", "spawn", "touch"),
        "pickle.loads": b"cpickle\nloads\n(C" + bytes([len(_inner())]) + _inner() + b"tR",
        "_pickle.loads": b"c_pickle\nloads\n(C" + bytes([len(_inner())]) + _inner() + b"tR",
        "torch.load": calls("torch", "load", "evil.pt"),
        "torch.hub.load": calls("torch.hub", "load", "evil/repo", "model"),
        "torch.jit.load": calls("torch.jit", "load", "evil.pt"),
        "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n(C\x04evil" + b"tR",
        "torch._utils._rebuild_parameter of code": b"ctorch._utils\n_rebuild_parameter\n("
        + calls("os", "system", _COMMAND)
        + b"\x88}tR",
        "numpy.load": calls("numpy", "load", "evil.npy"),
        "numpy of objects": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n("
        + text("O8")
        + b"tRC"
        + bytes([len(_inner())])
        + _inner()
        + b"tR",
        "numpy.testing runstring": calls("numpy.testing._private.utils", "runstring", _PYTHON),
        "functools.partial": b"cfunctools\npartial\n(cos\nsystem\n" + text(_COMMAND) + b"tR)R",
        "operator.methodcaller": calls("operator", "methodcaller", "system", _COMMAND),
        "operator.attrgetter": calls("operator", "attrgetter", "system") + b"0" + calls("os", "system", _COMMAND),
        "getattr chain": b"cbuiltins\ngetattr\n(cos\npath\n" + text("os") + b"tR0" + calls("os", "system", _COMMAND),
        "types.FunctionType": calls("types", "FunctionType", "x"),
        "types.CodeType": calls("types", "CodeType", "x"),
        "dill._dill._create_code": calls("dill._dill", "_create_code", "x"),
        "dill._dill._create_function": calls("dill._dill", "_create_function", "x"),
        "dill._dill._import_module": calls("dill._dill", "_import_module", "antigravity"),
        "dill._dill._load_type called twice": calls("dill._dill", "_load_type", "CodeType") + b"(tR",
        "cloudpickle": calls("cloudpickle.cloudpickle", "_make_function", "x"),
        "copyreg.__newobj__": b"ccopyreg\n__newobj__\n(csubprocess\nPopen\n" + text(_COMMAND) + b"tR",
        "copyreg._reconstructor": b"ccopy_reg\n_reconstructor\n(csubprocess\nPopen\ncbuiltins\nobject\nNtR",
        "importlib.import_module": calls("importlib", "import_module", "antigravity"),
        "omegaconf.OmegaConf.load": calls("omegaconf.omegaconf", "OmegaConf.load", "evil.yaml"),
        "hydra.utils.instantiate": b"chydra.utils\ninstantiate\n(}" + text("_target_") + text("os.system") + b"stR",
        "diffusion_policy's own class": b"cdiffusion_policy.workspace.base_workspace\nBaseWorkspace\n)R",
        "a dotted name": b"\x8c\x09posixpath\x8c\x09os.system\x93(" + text(_COMMAND) + b"tR",
        "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93(" + text(_COMMAND) + b"tR",
        "STACK_GLOBAL by memo": b"\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93(" + text(_COMMAND) + b"tR",
        "INST": b"(" + text(_COMMAND) + b"ios\nsystem\n",
        "OBJ": b"(cos\nsystem\n" + text(_COMMAND) + b"o",
        "NEWOBJ": b"csubprocess\nPopen\n(" + text(_COMMAND) + b"t\x81",
        "NEWOBJ_EX": b"csubprocess\nPopen\n(" + text(_COMMAND) + b"t}\x92",
        "BUILD with __setstate__": b"ccollections\nOrderedDict\n)R}"
        + text("__setstate__")
        + b"cos\nsystem\nsb"
        + text(_COMMAND)
        + b"b",
        "BUILD of a class": b"ccollections\nOrderedDict\n}" + text("__reduce__") + b"cos\nsystem\nsb)R",
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x00",
        "EXT4": b"\x84\x01\x00\x00\x00",
        "PERSID": b"Pcanary\n",
        "BINPERSID of code": calls("os", "system", _COMMAND) + b"Q",
        "BINPERSID of a storage of code": b"("
        + text("storage")
        + b"cos\nsystem\n"
        + text("0")
        + text("cpu")
        + b"K\x04tQ",
        "NEXT_BUFFER": b"\x97",
        "READONLY_BUFFER": b"\x97\x98",
        "defaultdict of a function": b"ccollections\ndefaultdict\n(cos\nsystem\ntR" + text(_COMMAND) + b"Ns",
    }
    return forms


def _inner() -> bytes:
    return b"cos\nsystem\n(" + text(_COMMAND) + b"tR."


def bombs() -> dict[str, bytes]:
    """Name -> whole pickles that are no code, and no data either."""
    lists = b"\x80\x02]"
    for _ in range(60):  # each list holds the one before twice: 2^60 values
        lists += b"q\x00]h\x00ah\x00a"
    return {
        "nothing": b"",
        "only STOP": b".",
        "no STOP": b"\x80\x02}",
        "an unknown opcode": b"\x80\x02\xff.",
        "protocol 200": b"\x80\xc8}.",
        "an empty stack": b"\x80\x02R.",
        "a mark that is not there": b"\x80\x02t.",
        "a memo that is not there": b"\x80\x02h\x63.",
        "nested lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "nested marks": b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",
        "nested tuples": b"\x80\x02)" + b"\x85" * 300_000 + b".",
        "doubling lists": lists + b".",
        "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
        "a dict that holds itself": b"\x80\x02}q\x00" + text("cfg") + b"h\x00s" + text("state_dicts") + b"h\x00s.",
        "a text of 4 GB": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 32) + b"x.",
        "bytes of 2^63": b"\x80\x04\x8e" + struct.pack("<Q", (1 << 63) - 1) + b"x.",
        "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.",
        "a number of 2 GB": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"1.",
        "a number of negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"1.",
        "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
        "a long of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "a float that is none": b"Fnope\n.",
        "text that is not UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
        "a string": b"\x80\x02" + text("hello") + b".",
        "a list": b"\x80\x02].",
        "an empty dict": b"\x80\x02}.",
        "other keys": pickle.dumps({"hello": [1, 2, 3]}, protocol=2),
        "cfg is a number": pickle.dumps({"cfg": 1, "state_dicts": {}}, protocol=2),
        "no weights": pickle.dumps({"cfg": {}, "state_dicts": {}}, protocol=2),
        "robomimic without weights": pickle.dumps(
            {"model": {}, "config": "{}", "algo_name": "diffusion_policy"}, protocol=2
        ),
        "another algorithm": pickle.dumps({"model": {}, "config": "{}", "algo_name": "bc_rnn"}, protocol=2),
        "a state dict": pickle.dumps({"weight": 1.0}, protocol=2),
        "unhashable keys": b"\x80\x02}]K\x01s.",
    }


def pickle_cases(valid: dict[str, Path]) -> Iterator[Made]:
    """(format, name, make)."""
    from hostile_files import rezip

    whole = valid["dp"]
    for name, opcodes in code().items():
        data = b"\x80\x02}" + text("cfg") + opcodes + b"s."
        yield "dp", f"carries code: {name}", lambda f, d=data: rezip(whole, f / "evil.ckpt", {"data.pkl": d})
    for name, opcodes in list(code().items())[:4]:
        bare = b"\x80\x02}" + text("model") + opcodes + b"s."
        yield "dp", f"a bare pickle with code: {name}", lambda f, d=bare: _write(f / "evil.pth", d)
    evil = b"\x80\x02" + code()["os.system"] + b"0}."
    yield "dp", "code, dropped from the stack", lambda f: rezip(whole, f / "evil.ckpt", {"data.pkl": evil})
    yield (
        "dp",
        "code before the payload",
        lambda f: rezip(
            whole, f / "evil.ckpt", {"data.pkl": b"\x80\x02" + code()["os.system"] + b"0" + _pickle_of(whole)[2:]}
        ),
    )
    for name, data in bombs().items():
        yield "dp", f"pickle: {name}", lambda f, d=data: rezip(whole, f / "odd.ckpt", {"data.pkl": d})
    yield from _archives(whole)


def _archives(whole: Path) -> Iterator[Made]:
    """What is wrong with the zip around the pickle."""
    from hostile_files import rezip

    data = _pickle_of(whole)
    with zipfile.ZipFile(whole) as file:  # of the last state dict: weights that are used
        some = sorted(n for n in file.namelist() if "/data/" in n)

    def deflated(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data.pkl", b"\x80\x02]" + b"K\x00" * (150 << 20))
        return folder / "bomb.ckpt"

    def outside(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "outside.ckpt", "w") as file:
            file.writestr("archive/data.pkl", data)
            file.writestr("archive/../../canary", b"x")
            file.writestr("/tmp/../canary", b"x")
        return folder / "outside.ckpt"

    def twice(folder: Path) -> Path:
        path = rezip(whole, folder / "twice.ckpt", {})
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(next(n for n in file.namelist() if n.endswith("data.pkl")), b"\x80\x02}.")
        return path

    def many(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "many.ckpt", "w") as file:
            file.writestr("archive/data.pkl", data)
        return folder / "many.ckpt"

    def named(name: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            with zipfile.ZipFile(folder / "names.ckpt", "w") as file:
                file.writestr(name, data)
            return folder / "names.ckpt"

        return make

    def directory(where: int, value: bytes) -> Callable[[Path], Path]:
        """The zip's end record, 22 bytes from the end, changed at an offset."""

        def make(folder: Path) -> Path:
            content = bytearray(whole.read_bytes())
            at = content.rindex(b"PK\x05\x06") + where
            content[at : at + len(value)] = value
            return _write(folder / "directory.ckpt", bytes(content))

        return make

    def claims(find: bytes, put: bytes) -> Callable[[Path], Path]:
        """A number in the pickle changed: sizes and strides of tensors."""
        return lambda folder: rezip(whole, folder / "claims.ckpt", {"data.pkl": data.replace(find, put, 1)})

    yield "dp", "zip: a bomb", deflated
    yield "dp", "zip: names outside, and no storages", outside
    yield "dp", "zip: two pickles", twice
    yield "dp", "zip: no storages", many
    yield "dp", "zip: no pickle", named("archive/other.pkl")
    yield "dp", "zip: a pickle without a folder", named("data.pkl.txt")
    yield "dp", "zip: the other byte order", lambda f: rezip(whole, f / "big.ckpt", {"byteorder": b"big"})
    yield "dp", "zip: an unknown byte order", lambda f: rezip(whole, f / "big.ckpt", {"byteorder": b"\xff\x00"})
    yield "dp", "zip: storages of one byte", lambda f: rezip(whole, f / "short.ckpt", dict.fromkeys(some, b"x"))
    yield "dp", "zip: storages lack", lambda f: rezip(whole, f / "lacks.ckpt", dict.fromkeys(some))
    yield "dp", "zip: entries deflated", lambda f: rezip(whole, f / "deflated.ckpt", {}, zipfile.ZIP_DEFLATED)
    yield "dp", "zip: a directory of 4 GB", directory(12, b"\xfe\xff\xff\xff")
    for name, put in {
        "int 2^31": b"J\xff\xff\xff\x7f",
        "2^62": b"\x8a\x08" + b"\x00" * 7 + b"\x40",
        "-1": b"J\xff\xff\xff\xff",
    }.items():
        yield "dp", f"tensor: a size of {name}", _sizes(whole, data, put)
    yield "dp", "tensor: an unknown storage", claims(b"FloatStorage", b"QuantStorage")


def _sizes(whole: Path, data: bytes, put: bytes) -> Callable[[Path], Path]:
    """The first size of a weight, replaced; its offset in the storage, a number, stands before it."""
    from hostile_files import rezip

    lengths = {b"K": 2, b"M": 3, b"J": 5, b"(": 1}

    def make(folder: Path) -> Path:
        at = data.index(b"model.final_conv.1.weight", data.index(b"ema_model"))
        at = data.index(b"Q", at) + 1
        at += lengths[data[at : at + 1]]
        at += data[at : at + 1] == b"("
        end = at + lengths[data[at : at + 1]]
        return rezip(whole, folder / "sizes.ckpt", {"data.pkl": data[:at] + put + data[end:]})

    return make


def _pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as file:
        return file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
