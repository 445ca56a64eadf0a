"""Checkpoints load safely or are refused; nothing in them ever runs."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import tarfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fairseq_openvino import checkpoint, pickles  # noqa: E402
from fairseq_openvino.checkpoint import TRUST_VARIABLE, load_checkpoint  # noqa: E402
from fairseq_openvino.errors import (  # noqa: E402
    EXIT_UNSAFE,
    CheckpointError,
    UnsafeCheckpointError,
)

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Canary:
    """Creates a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def weights() -> dict[str, torch.Tensor]:
    return {"encoder.weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture(autouse=True)
def untrusted(monkeypatch):
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)


@FORMATS
def test_namespace_checkpoint_loads(tmp_path, zipped):
    path = tmp_path / "model.pt"
    args = Namespace(arch="s2t_transformer_s", dropout=0.1, layers=[1, 2], inner=Namespace(a=None))
    torch.save({"args": args, "model": weights()}, path, _use_new_zipfile_serialization=zipped)
    state = load_checkpoint(path)
    assert state["args"] == args
    assert torch.equal(state["model"]["encoder.weight"], weights()["encoder.weight"])


def test_weights_saved_on_another_device_arrive_on_the_cpu(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": weights()}, path)
    assert load_checkpoint(str(path))["model"]["encoder.weight"].device.type == "cpu"


@FORMATS
def test_numpy_scalars_load_with_value_and_type(tmp_path, zipped):
    path = tmp_path / "model.pt"
    scalars = [
        np.float64(2.5), np.float32(-1.5), np.int64(-7), np.uint8(200), np.bool_(True),
        np.dtype(">f8").type(3.25),
    ]  # fmt: skip
    torch.save({"model": {}, "best": scalars}, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path)["best"]
    assert loaded == scalars
    assert [type(value) for value in loaded] == [type(value) for value in scalars]


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_arrays_of_numbers_load(tmp_path, zipped, protocol):
    path = tmp_path / "model.pt"
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    arrays = [
        np.arange(12.0).reshape(3, 4), np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 5), np.uint8), np.array(3, ">i2"), np.random.RandomState(1).get_state()[1],
        np.arange(10)[::3],
    ]  # fmt: skip
    torch.save({"model": {}, "extra_state": arrays}, path, **options)
    for found, expected in zip(load_checkpoint(path)["extra_state"], arrays, strict=True):
        assert isinstance(found, np.ndarray) and found.dtype.newbyteorder(
            "="
        ) == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)
    torch.save({"model": {}, "x": np.array([Canary(tmp_path / "canary")])}, path, **options)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    torch.save({"model": {}, "x": np.array([None, 1])}, path, **options)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "canary").exists()


def test_scalars_of_the_other_byte_order_are_read():
    kind = pickles._ScalarType("f4")
    kind.__setstate__((3, ">", None, None, None, -1, -1, 0))
    assert pickles._scalar(kind, np.array(-2.5, ">f4").tobytes()) == -2.5


def test_the_loader_refuses_what_the_scan_misses(tmp_path, monkeypatch):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"model": Canary(canary)}, path)
    monkeypatch.setattr(checkpoint, "_inspect", lambda name: (set(), None))
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir"):
        load_checkpoint(path)
    assert not canary.exists()


def test_numpy_objects_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": {}, "kind": np.dtype("O")}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_plain_and_omegaconf_configurations_load(tmp_path):
    conf = pytest.importorskip("omegaconf").OmegaConf
    plain = {"model": Namespace(arch="x"), "task": {"data": "d", "seeds": [1, 2]}, "bpe": None}
    wrapped = conf.create(plain, flags={"allow_objects": True})
    for name, cfg in (("plain", plain), ("wrapped", wrapped)):
        torch.save({"args": None, "cfg": cfg, "model": weights()}, tmp_path / name)
        loaded = load_checkpoint(tmp_path / name)["cfg"]
        assert type(loaded) is type(cfg)
        assert loaded["task"]["seeds"][1] == 2
        assert loaded["model"].arch == "x"


def test_full_fairseq_configuration_and_dictionary_load(tmp_path):
    pytest.importorskip("fairseq")
    from fairseq.data import Dictionary
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from omegaconf import OmegaConf

    cfg = convert_namespace_to_omegaconf(Namespace(seed=3, task="speech_to_text", data="d"))
    dictionary = Dictionary()
    dictionary.add_symbol("hello")
    state = {
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "task_state": {"target_dictionary": dictionary},
        "model": weights(),
    }
    torch.save(state, tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded["cfg"]["common"]["seed"] == 3
    assert loaded["task_state"]["target_dictionary"].index("hello") == dictionary.index("hello")


@FORMATS
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_newer_pickles_load_as_safely(tmp_path, zipped, protocol):
    conf = pytest.importorskip("omegaconf").OmegaConf
    path = tmp_path / "model.pt"
    state = {
        "args": Namespace(arch="x", layers=[1, 2], inner=Namespace(a={1, 2}, b=b"\0")),
        "cfg": conf.create({"model": {"arch": "x"}}),
        "best": [np.float64(2.5), np.int64(-7)],
        "order": OrderedDict(a=1),
        "model": weights() | {"half": torch.ones(3, dtype=torch.bfloat16)},
    }
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(state, path, **options)
    loaded = load_checkpoint(path)
    for name, value in loaded.pop("model").items():
        assert torch.equal(value, state["model"][name])
    assert loaded == {name: value for name, value in state.items() if name != "model"}
    torch.save(state | {"x": [Canary(tmp_path / "canary")] * 2}, path, **options)
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir"):
        load_checkpoint(path)
    assert not (tmp_path / "canary").exists()


ATTACKS = {
    "dotted": b"\x8c\x08argparse\x8c\x12Namespace.__init__\x93.",
    "from-memo": b"\x8c\x05posix\x94\x8c\x05mkdir\x94h\x00h\x01\x93\x8c\x06CANARY\x85R.",
    "old-name": b"c__builtin__\neval\n\x8c\x0bprint('no')\x85R.",
    "call-of-a-method": b"cargparse\nNamespace\n)\x81\x94h\x00)R.",
    "state-of-a-class": b"cargparse\nNamespace\nN}\x8c\x08__call__Ns\x86b.",
    "new-of-a-type": b"cbuiltins\ntype\n\x8c\x01x)}\x87\x81.",
    "instance": b"(\x8c\x06CANARYiposix\nmkdir\n.",
    "object": b"(cposix\nmkdir\n\x8c\x06CANARYo.",
    "named-arguments": b"cargparse\nNamespace\n)}\x92.",
    "extension": b"\x82\x01.",
    "items-of-an-object": b"cargparse\nNamespace\n)\x81\x8c\x01xNs.",
    "module-by-id": b"\x8c\x06modulecargparse\nNamespace\nNN\x87Q.",
    "list-of-an-object": b"cargparse\nNamespace\n)\x81Na.",
    "frame-without-end": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "buffer": b"\x96\x00\x00\x00\x00\x00\x01\x00\x00.",
}
"""Bodies of pickles that try to run code, or to change or read what they may not."""


@pytest.mark.parametrize("scanned", [True, False], ids=["scan", "loader"])
@pytest.mark.parametrize("body", ATTACKS.values(), ids=ATTACKS)
def test_no_newer_pickle_runs_anything(tmp_path, monkeypatch, body, scanned):
    canary = tmp_path / "CANARY"
    monkeypatch.chdir(tmp_path)
    torch.save({"model": weights()}, tmp_path / "whole.pt")
    with ZipFile(tmp_path / "whole.pt") as whole, ZipFile(tmp_path / "evil.pt", "w") as evil:
        for entry in whole.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            evil.writestr(entry, b"\x80\x05" + body if is_pickle else whole.read(entry))
    if not scanned:
        monkeypatch.setattr(checkpoint, "_inspect", lambda name: ({"argparse.Namespace"}, None))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "evil.pt")
    assert not canary.exists()
    assert not hasattr(Namespace, "x") and Namespace.__call__ is not None


def test_archives_that_torch_would_run_or_unpack_are_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "tar.pt", "w") as tar:
        tar.add(tmp_path / "script.pt", "storages")
    for name, got in (("script.pt", "a TorchScript archive"), ("tar.pt", "a tar archive")):
        with pytest.raises(CheckpointError, match=got):
            load_checkpoint(tmp_path / name)


@FORMATS
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, zipped):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    state = {"model": weights(), "extra": Canary(canary)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(path)
    assert not canary.exists()
    assert caught.value.exit_code == EXIT_UNSAFE
    for part in (str(path), "posix.mkdir", f"{TRUST_VARIABLE}=1"):
        assert part in str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_with_code_is_refused(tmp_path, protocol):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    path.write_bytes(pickle.dumps({"model": Canary(canary)}, protocol))
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir"):
        load_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "reduced",
    [
        (eval, ("__import__('os').mkdir({0!r})",)),
        (importlib.import_module, ("os",)),
        (Namespace.__init__.__get__(Namespace()), ()),
        (type, ("Namespace", (), {})),
    ],
    ids=["eval", "import", "bound-method", "type"],
)
def test_builtins_outside_the_list_are_refused(tmp_path, reduced):
    canary = tmp_path / "canary"
    function, arguments = reduced
    arguments = tuple(
        part.format(str(canary)) if isinstance(part, str) else part for part in arguments
    )
    holder = type("Holder", (), {"__reduce__": lambda self: (function, arguments)})
    torch.save({"model": holder()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "evil.pt")
    assert not canary.exists()


def test_trust_loads_and_logs_the_hash(tmp_path, monkeypatch, caplog):
    path, canary = tmp_path / "mine.pt", tmp_path / "canary"
    torch.save({"model": weights(), "extra": Canary(canary)}, path)
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    with caplog.at_level("WARNING"):
        assert "model" in load_checkpoint(path)
    assert canary.is_dir()
    assert re.search(r"sha256 [0-9a-f]{64}", caplog.text)
    assert "posix.mkdir" in caplog.text


def test_trust_is_silent_where_it_is_not_needed(tmp_path, monkeypatch, caplog):
    torch.save({"model": weights()}, tmp_path / "model.pt")
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    load_checkpoint(tmp_path / "model.pt")
    assert not caplog.records


@FORMATS
@pytest.mark.parametrize("protocol", [2, 5])
def test_truncated_files_are_damaged_at_every_length(tmp_path, zipped, protocol):
    whole, part = tmp_path / "whole.pt", tmp_path / "part.pt"
    torch.save(
        {"args": Namespace(a=np.float64(1)), "model": weights()}, whole,
        _use_new_zipfile_serialization=zipped, pickle_protocol=protocol,
    )  # fmt: skip
    data = whole.read_bytes()
    for length in [1, 2, 3, *range(4, len(data), 13), len(data) - 1]:
        part.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=re.escape(repr(str(part)))):
            load_checkpoint(part)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 5])
def test_flipped_bytes_never_raise_anything_else(tmp_path, zipped, protocol):
    path = tmp_path / "model.pt"
    torch.save(
        {"args": Namespace(a=1, b="text", c=np.ones(2)), "model": weights()}, path,
        _use_new_zipfile_serialization=zipped, pickle_protocol=protocol,
    )  # fmt: skip
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            state = load_checkpoint(path)
        except CheckpointError:
            continue
        assert "model" in state


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (None, "no such file"),
        (b"", "an empty file"),
        (b"not a checkpoint at all", "expected a complete file"),
        (b"PK\x03\x04" + b"\0" * 100, "expected a complete file"),
    ],
    ids=["missing", "empty", "text", "hollow-zip"],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, got):
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=got) as caught:
        load_checkpoint(path)
    assert repr(str(path)) in str(caught.value)


def test_a_directory_and_a_pipe_are_no_checkpoints(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="a directory"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="a special file"):
        load_checkpoint(tmp_path / "pipe")


@pytest.mark.parametrize("state", [{"weights": {}}, [1, 2], torch.ones(2)])
def test_other_torch_files_are_no_checkpoints(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="expected a dict with the key 'model'"):
        load_checkpoint(tmp_path / "model.pt")
