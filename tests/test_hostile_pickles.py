"""What a pickle may do through any door: nothing runs, and nothing outgrows the file it stands in."""

from __future__ import annotations

import copyreg
import gzip
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MINI, PACKAGE, ROOT, child_environment
from contained import contained

from fairseq_openvino import load_model
from fairseq_openvino.checkpoint import TRUST_VARIABLE, load_checkpoint
from fairseq_openvino.errors import (
    EXIT_MODEL,
    EXIT_UNSAFE,
    CheckpointError,
    FairseqOpenVINOError,
    UnsafeCheckpointError,
)

WHISPER = ROOT / "examples" / "covost" / "whisper" / "mini"
CANARY = "canary"
"""Directory, below the working directory, that hostile pickles make."""
CALL = b"cposix\nmkdir\n" + b"\x8c\x06canary\x85R"
EXTENSION = 240
"""A code of `copyreg`, which pickles may call functions by."""
PICKLE_2, PICKLE_4 = b"\x80\x02", b"\x80\x04"


class Canary:
    """Makes the directory when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (CANARY,)


def saved(state: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def archive(*records: tuple[str, bytes], packed: bool = False) -> bytes:
    """A checkpoint of one tensor, with records in place of its own or after them."""
    file, replaced = io.BytesIO(), {name for name, _ in records}
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    whole = zipfile.ZipFile(io.BytesIO(saved({"model": {"w": torch.arange(6.0)}})))
    with zipfile.ZipFile(file, "w", kind) as target:
        for entry in whole.infolist():
            if entry.filename not in replaced:
                target.writestr(entry.filename, whole.read(entry))
        for name, content in records:
            target.writestr(name, content)
    return file.getvalue()


def zipped(body: bytes, protocol: bytes = PICKLE_2) -> bytes:
    """A checkpoint with a pickle of its own."""
    return archive(("archive/data.pkl", protocol + body))


def tarred() -> bytes:
    """As torch 0.1 wrote checkpoints."""
    file = io.BytesIO()
    parts = {
        "storages": pickle.dumps(0) + pickle.dumps([]),
        "tensors": pickle.dumps(0),
        "pickle": CALL + b".",
    }
    with tarfile.open(fileobj=file, mode="w") as target:
        for name, content in ({"sys_info": pickle.dumps({})} | parts).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content.encode())) + content.encode()


def blob(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


ATTACKS: dict[str, Callable[[], bytes]] = {
    "reduce": lambda: saved({"model": {}, "x": Canary()}),
    "legacy": lambda: saved({"model": Canary()}, _use_new_zipfile_serialization=False),
    "bare": lambda: pickle.dumps({"model": Canary()}, 0),
    "protocol 5": lambda: saved({"model": {}, "x": Canary()}, pickle_protocol=5),
    "two pickles of a name": lambda: archive(
        ("archive/data.pkl", b"\x80\x02}."), ("archive/data.pkl", CALL + b".")
    ),
    "nested pickle": lambda: zipped(
        b"c_pickle\nloads\n" + blob(pickle.dumps(Canary())) + b"\x85R.", PICKLE_4
    ),
    "nested zip": lambda: zipped(
        b"cfunctools\npartial\nctorch\nload\n\x85R(ctorch\nload\n)}" + text("weights_only")
        + b"\x89sNtbcio\nBytesIO\n" + blob(saved(Canary())) + b"\x85R\x85R.", PICKLE_4
    ),
    "legacy tar": tarred,
    "polyglot": lambda: pickle.dumps({"model": Canary()}, 2) + archive(),
    "TorchScript": lambda: archive(
        ("archive/constants.pkl", CALL + b"."), ("archive/data.pkl", CALL + b".")
    ),
    "attribute of a module": lambda: zipped(
        b"\x8c\x08argparse\x8c\x09_os.mkdir\x93\x8c\x06canary\x85R.", PICKLE_4
    ),
    "name from the memo": lambda: zipped(
        b"\x8c\x05posix\x94\x8c\x05mkdir\x940\x8c\x08argparse0h\x00h\x01\x93\x8c\x06canary\x85R.", PICKLE_4
    ),
    "objects of NumPy": lambda: saved({"model": {}, "x": np.array([Canary()], object)}),
    "state": lambda: zipped(
        b"cargparse\nNamespace\n)\x81}" + text("x") + CALL + b"sb.", PICKLE_4
    ),
    "method of a class": lambda: zipped(
        b"cargparse\nNamespace\nN}" + text("__setstate__") + b"cposix\nmkdir\nsb."
        b"cargparse\nNamespace\n)\x81" + text(CANARY) + b"b.", PICKLE_4
    ),
    "extension": lambda: zipped(b"\x82" + bytes([EXTENSION]) + text(CANARY) + b"\x85R."),
    "instance": lambda: zipped(b"(X\x06\0\0\0canaryiposix\nmkdir\n."),
    "evaluated": lambda: zipped(
        b"c__builtin__\neval\n" + text(f"__import__('os').mkdir('{CANARY}')") + b"\x85R."
    ),
    "claims": lambda: zipped(CALL + b"0\x8e" + struct.pack("<Q", 1 << 40) + b".", PICKLE_4),
}  # fmt: skip
"""Files that make the directory where pickles run."""
HARMLESS_IN_TORCH = {"two pickles of a name", "TorchScript", "method of a class", "state"}


def door_of_fairseq(path: Path) -> None:
    from fairseq_openvino.export.fairseq import export_checkpoint
    from fairseq_openvino.export.fairseq.data import DataDirectory

    export_checkpoint(path, DataDirectory(MINI, "config_st_en_de.yaml"), path.parent / "out")


def door_of_openai(path: Path) -> None:
    from fairseq_openvino.export.whisper.source import load_source

    load_source(path)


def door_of_hugging_face(path: Path) -> None:
    from fairseq_openvino.export.whisper.source import load_source

    shutil.copyfile(WHISPER / "config.json", path.parent / "config.json")
    load_source(path.rename(path.parent / "pytorch_model.bin"))


def door_of_speech2text(path: Path) -> None:
    from fairseq_openvino.export.speech2text import export_speech2text

    (path.parent / "config.json").write_text('{"model_type": "speech_to_text", "d_model": 8}')
    path.rename(path.parent / "pytorch_model.bin")
    export_speech2text(path.parent, path.parent / "out")


def door_of_averaging(path: Path) -> None:
    from fairseq_openvino.export.fairseq.averaging import average

    average([path], path.parent / "out")


def door_of_the_plugin(path: Path) -> None:
    """By which fairseq-generate, fairseq-train and `from_pretrained` of its hub read checkpoints."""
    from fairseq import checkpoint_utils

    from fairseq_openvino.compat.shims import apply_shims

    apply_shims()
    checkpoint_utils.load_checkpoint_to_cpu(str(path))


DOORS = [
    door_of_fairseq, door_of_openai, door_of_hugging_face, door_of_speech2text, door_of_averaging,
    door_of_the_plugin,
]  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where a code of `copyreg` calls mkdir."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    if ("posix", "mkdir") not in copyreg._extension_registry:  # type: ignore[attr-defined]
        copyreg.add_extension("posix", "mkdir", EXTENSION)
    return tmp_path


@pytest.mark.parametrize("attack", sorted(ATTACKS.keys() - HARMLESS_IN_TORCH))
def test_the_attacks_run_where_pickles_run(attack: str, place: Path) -> None:
    (place / "evil.pt").write_bytes(ATTACKS[attack]())
    with suppress(Exception):
        torch.load(place / "evil.pt", weights_only=False)
    assert (place / CANARY).exists()


@pytest.mark.parametrize("door", DOORS)
def test_no_door_lets_them_in(door: Callable[[Path], None], place: Path) -> None:
    for number, (name, attack) in enumerate(ATTACKS.items()):
        path = place / str(number) / "evil.pt"
        path.parent.mkdir()
        path.write_bytes(attack())
        with pytest.raises(FairseqOpenVINOError) as caught:
            door(path)
        assert caught.value.exit_code in (EXIT_UNSAFE, EXIT_MODEL), name
        assert str(place) in str(caught.value), name
        assert not (place / CANARY).exists(), name
        assert not (path.parent / "out").exists(), name


CODE = f"__import__('os').mkdir('{CANARY}')"
"""Of an option that Fairseq gives to `eval`."""


def with_code(path: Path) -> None:
    """The shipped model, whose decoder would run it."""
    state = load_checkpoint(MINI / "checkpoint.pt")
    state["cfg"]["model"].adaptive_softmax_cutoff = CODE
    torch.save(state, path)


def test_options_run_no_code(place: Path) -> None:
    with_code(place / "evil.pt")
    with pytest.raises(UnsafeCheckpointError, match="an option of Fairseq .*__import__"):
        door_of_fairseq(place / "evil.pt")
    assert not (place / CANARY).exists() and not (place / "out").exists()


@pytest.mark.fault
@pytest.mark.parametrize("attack", ATTACKS)
def test_fairseq_generate_refuses_them(attack: str, place: Path) -> None:
    (place / "evil.pt").write_bytes(ATTACKS[attack]())
    for flags in ([], ["--ov-engine", "--ov-cache-dir", str(place / "cache")]):
        found = generated(*flags)
        assert found.returncode in (EXIT_UNSAFE, EXIT_MODEL), found.stderr[-2000:]
        assert "error: Loading a checkpoint" in found.stderr
        assert not (place / CANARY).exists()


def generated(*flags: str) -> subprocess.CompletedProcess[str]:
    """`fairseq-generate` with evil.pt."""
    command = [
        str(Path(sys.executable).parent / "fairseq-generate"), str(MINI), "--config-yaml",
        "config_st_en_de.yaml", "--gen-subset", "test_st_en_de", "--task", "speech_to_text",
        "--path", "evil.pt", "--user-dir", str(PACKAGE), *flags,
    ]  # fmt: skip
    return subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, timeout=120
    )


@pytest.mark.fault
def test_fairseq_generate_runs_no_code_of_options(place: Path) -> None:
    with_code(place / "evil.pt")
    for flags in ([], ["--ov-engine", "--ov-cache-dir", str(place / "cache")]):
        found = generated(*flags)
        assert found.returncode == EXIT_UNSAFE and "an option of Fairseq" in found.stderr
        assert not (place / CANARY).exists()


@pytest.mark.fault
def test_from_pretrained_refuses_them(place: Path) -> None:
    from fairseq.models.speech_to_text import S2TTransformerModel

    import fairseq_openvino.tasks.speech_to_text_openvino  # noqa: F401  --user-dir does this

    shutil.copytree(MINI, place / "data", ignore=shutil.ignore_patterns("clips"))
    for name, attack in ATTACKS.items():
        (place / "data" / "checkpoint.pt").write_bytes(attack())
        for engine in ({}, {"ov_engine": True, "ov_cache_dir": str(place / "cache")}):
            stated = {"user_dir": str(PACKAGE), "config_yaml": "config_st_en_de.yaml"} | engine
            with pytest.raises(CheckpointError):
                S2TTransformerModel.from_pretrained(
                    str(place / "data"), "checkpoint.pt", str(place / "data"), **stated
                )
            assert not (place / CANARY).exists(), name


def test_running_a_bundle_unpickles_nothing(
    mini_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpickled: list[str] = []
    for name in ("pickle.Unpickler", "pickle.load", "pickle.loads", "_pickle.Unpickler", "_pickle.load",
                 "_pickle.loads", "torch.load", "marshal.load"):  # fmt: skip
        monkeypatch.setattr(name, lambda *_, name=name, **__: unpickled.append(name))
    listening = True

    def hear(event: str, arguments: Any) -> None:
        if listening and event == "pickle.find_class":
            unpickled.append(str(arguments))

    sys.addaudithook(hear)  # which stays for ever
    clip = min((MINI / "clips").glob("*.mp3"))
    assert load_model(mini_bundle).transcribe(clip).text
    listening = False
    assert not unpickled


def nested(kind: bytes, times: int = 60) -> bytes:
    """A container that holds another one twice, and so on: 2^60 values in 600 bytes."""
    first = {b"]": b"]", b")": b")"}[kind] + b"q\x00"
    twice = {b"]": b"0](h%ch%ceq%c", b")": b"0h%ch%c\x86q%c"}[kind]
    return first + b"".join(twice % (i - 1, i - 1, i) for i in range(1, times))


def tensor(storage: int, size: int, stride: int) -> bytes:
    name = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    where = name + number(storage) + b"tQ" + b"K\x00" + number(size) + b"\x85" + number(stride)
    made = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + where + b"\x85\x89ccollections\nOrderedDict\n)RtR"
    )
    return b"}" + text("model") + b"}" + text("w") + made + b"ss"


def settings(times: int = 40) -> bytes:
    """A node of OmegaConf that holds another one twice, and so on: to hash it takes for ever."""
    made = [b"comegaconf.nodes\nAnyNode\n)\x81}" + text("_val") + b"%bsbq%c0"]
    held = (b"N", *(b"h%ch%c\x86" % (i, i) for i in range(times - 1)))
    return b"".join(made[0] % (value, i) for i, value in enumerate(held)) + b"h%c" % (times - 1)


def of_one_hash(count: int) -> list[bytes]:
    modulus = sys.hash_info.modulus
    return [
        b"\x8a\x0a" + (i * modulus).to_bytes(10, "little", signed=True) for i in range(1, count)
    ]


MANY = number(10**10)
BOMBS: dict[str, bytes] = {
    "bytes": b"cbuiltins\nbytes\n" + MANY + b"\x85R",
    "bytearray": b"cbuiltins\nbytearray\n" + MANY + b"\x85R",
    "storage": b"ctorch.storage\nUntypedStorage\n" + MANY + b"\x85R",
    "tensor": b"ctorch\nTensor\n" + MANY + b"\x85R",
    "new tensor": b"ctorch\nFloatTensor\n" + MANY + b"\x85\x81",
    "array": b"cnumpy\nndarray\n" + MANY + b"\x85R",
    "storage longer than the file": tensor(10**10, 6, 1),
    "tensor longer than its storage": tensor(6, 10**10, 1),
    "tensor of one number": tensor(6, 10**10, 0),
    "copies": text("a" * 200_000) + b"q\x010(cbuiltins\nbytearray\nq\x02h\x01" + text("latin-1")
    + b"q\x03\x86R" + b"h\x02h\x01h\x03\x86R" * 10_000 + b"l",
    "text of a nest": b"cbuiltins\nstr\n" + nested(b"]") + b"\x85R",
    "hash of a nest": b"}" + nested(b")") + b"Ns",
    "hash of a called nest": b"}" + b")q\x00" + b"".join(
        b"0cbuiltins\ntuple\n(h%ch%cl\x85Rq%c" % (i - 1, i - 1, i) for i in range(1, 60)) + b"Ns",
    "keys of one hash": b"}(" + b"N".join(of_one_hash(20_000)) + b"Nu",
    "hash of settings": b"}" + settings() + b"Ns",
    "hashes of settings": b"}(" + settings() + b"Nu",
    "settings in a tuple": b"}" + settings() + b"\x85Ns",
    "dictionary of settings": b"(" + settings() + b"Nd",
    "set of settings": b"\x8f(" + settings() + b"\x90",
    "frozen set of settings": b"(" + settings() + b"\x91",
    "called set of settings": b"c__builtin__\nset\n](" + settings() + b"e\x85R",
    "count of settings": b"ccollections\nCounter\n](" + settings() + b"e\x85R",
    "mapping of settings": b"ccollections\nOrderedDict\n](" + settings() + b"N\x86e\x85R",
    "default of settings": b"ccollections\ndefaultdict\nN](" + settings() + b"N\x86e\x86R",
    "settings as a storage": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + settings()
    + text("cpu") + b"K\x01tQ",
    "nest": b"}" + text("model") + b"}s" + text("args") + nested(b"]") + b"s",
    "circle": b"}" + text("model") + b"}s" + text("args") + b"]q\x00h\x00as",
    "refused nest": nested(b"]") + b"N\x85R",
    "codec": b"c_codecs\nencode\n" + text("a" * 300_000) + text("idna") + b"\x86R",
    "text that is not there": b"X\xff\xff\xff\xfe",
    "frame that is not there": b"\x95" + struct.pack("<Q", 1 << 40),
    "many marks": b"(" * 10_000,
    "deep list": b"]" * 10_000 + b"a" * 9_999,
}  # fmt: skip
"""Bodies of small pickles that cost much to read, to look through or to show."""


@pytest.mark.parametrize("bomb", BOMBS)
def test_nothing_outgrows_its_file(bomb: str, place: Path) -> None:
    body = BOMBS[bomb] + b"."
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    old = head + PICKLE_2 + body + pickle.dumps([], 2)
    for content in (zipped(body), zipped(body, PICKLE_4), old):
        (place / "bomb.pt").write_bytes(content)
        error = contained(lambda: load_checkpoint(place / "bomb.pt"), len(content), bomb)
        assert isinstance(error, CheckpointError) and str(place) in str(error)
        assert len(str(error)) < 1000


def test_keys_of_checkpoints(place: Path) -> None:
    keys = ["a", b"b", 1.5, True, None, -7, 140_000_000_000_000, np.int64(3)]
    held = [dict.fromkeys(keys, 0), {1, "a"}, Counter([5, 5]), OrderedDict([("c", 1)])]
    state = {"model": {}, "held": held, "default": defaultdict(dict)}
    torch.save(state, place / "c.pt", pickle_protocol=2)
    assert load_checkpoint(place / "c.pt") == state
    torch.save(state | {"frozen": frozenset({"b"})}, place / "c.pt", pickle_protocol=4)
    assert load_checkpoint(place / "c.pt")["frozen"] == {"b"}


def test_a_compressed_tar_is_not_unpacked(place: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 80 << 20
    content = gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(header.size), 1)
    (place / "bomb.pt").write_bytes(content)
    error = contained(lambda: load_checkpoint(place / "bomb.pt"), len(content), "tar")
    assert isinstance(error, CheckpointError)


def test_a_compressed_archive_is_not_unpacked(place: Path) -> None:
    body = PICKLE_2 + b"}" + text("model") + b"}s" + text("x" * (80 << 20)) + b"Ns."
    for content in (archive(("archive/data.pkl", body), packed=True), archive(packed=True)):
        (place / "bomb.pt").write_bytes(content)
        error = contained(lambda: load_checkpoint(place / "bomb.pt"), len(content), "archive")
        assert "a compressed archive" in str(error)
