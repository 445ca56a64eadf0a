"""The directory of a bundle, verified."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fairseq_openvino.bundle.files import Stamp, content_sha256, open_no_follow, stamp
from fairseq_openvino.bundle.manifest import (
    MANIFEST,
    MAX_FILE_BYTES,
    File,
    Manifest,
    read_manifest,
    refused,
)
from fairseq_openvino.errors import BundleError

ENCODER_IR = "encoder.xml"
DECODER_IR = "decoder.xml"
MAX_BYTES = {
    ".xml": 64 << 20, ".bin": MAX_FILE_BYTES, ".onnx": 2 << 30, ".data": MAX_FILE_BYTES,
    ".txt": 32 << 20, ".model": 64 << 20, ".json": 64 << 20, ".npz": 32 << 20,
}  # fmt: skip
"""By how a name ends, the kinds of files there are: graphs and weights, as IR and as ONNX; dictionaries,
SentencePiece models, tokenizers, statistics. What is called otherwise is no part of a bundle."""
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    directory: Path
    manifest: Manifest
    digest: str = ""
    """SHA-256 of the file manifest.json, which names that of every other file."""
    stamps: dict[str, Stamp] = field(default_factory=dict, repr=False, compare=False)
    """Of the files when they were verified last; none in a directory that this process has just written."""

    def path(self, name: str | None) -> Path:
        """Path of a file that the manifest lists; of a graph, OpenVINO reads the weights beside it.

        Raises:
            BundleError: there is no such file, or it has changed since it was verified.
        """
        self.open(name).close()
        self.open(weights_of(str(name))).close()
        return self.directory / str(name)

    def open(self, name: str | None) -> BinaryIO:
        """A file that the manifest lists, open as it was verified, whatever lies in its place by now.

        Raises:
            BundleError: there is no such file, or it has changed since it was verified.
        """
        if name is None or name not in self.manifest.files:
            raise refused(self.directory, f"a file {name!r}", "a manifest without it")
        if name not in self.stamps:
            return open(self.directory / name, "rb")
        file = _opened(self.directory, name)
        try:
            if self.stamps[name] != stamp(os.fstat(file.fileno())):
                self.stamps[name] = _verified(self.directory, name, file, self.manifest.files[name])
        except BundleError:
            file.close()
            raise
        return file


def weights_of(name: str) -> str:
    """The file of a graph's weights; of another file, its own name."""
    return name.removesuffix(".xml") + ".bin" if name.endswith(".xml") else name


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a directory with a manifest; says nothing about its integrity."""
    return (Path(path) / MANIFEST).is_file()


def open_bundle(directory: str | os.PathLike[str], expect: str | None = None) -> Bundle:
    """Read and verify a bundle.

    Args:
        directory: the bundle.
        expect: the SHA-256 of its manifest.json (`Bundle.digest`), as whoever made it stated it. Nothing
            else is read if it is another. A part of it will not do: 48 bits can be matched on purpose.

    Raises:
        BundleError: the manifest or a file is missing, damaged, not regular, too large, not listed, or of
            another format; or the digest is not the expected one.
        OptionError: `expect` is no SHA-256.
    """
    root = Path(directory)
    manifest, digest = read_manifest(root, expect)
    _check_names(root, manifest)
    stamps = {}
    for name, expected in manifest.files.items():
        with _opened(root, name) as file:
            stamps[name] = _verified(root, name, file, expected)
    return Bundle(root, manifest, digest, stamps)


def _check_names(root: Path, manifest: Manifest) -> None:
    """What the manifest lists can be part of a bundle, is all that it needs, and all there is."""
    for name in manifest.files:
        if not FILE_NAME.fullmatch(name):
            raise refused(root, "file names without a directory part", repr(name))
        if Path(name).suffix not in MAX_BYTES:
            raise refused(root, f"names that end in {', '.join(MAX_BYTES)}", repr(name))
    for graph in ("encoder", "decoder")[: 1 + manifest.has_decoder]:
        names = (f"{graph}.xml", f"{graph}.bin")
        if f"{graph}.onnx" not in manifest.files or names[0] in manifest.files:
            _check_listed(root, manifest, names)
    text = manifest.text
    stated = (
        text.dictionary, text.source_dictionary, text.sentencepiece, text.tokenizer, text.bpe_pieces,
        manifest.features.global_cmvn,
    )  # fmt: skip
    _check_listed(root, manifest, tuple(filter(None, stated)))
    try:
        present = sorted(root.iterdir())
    except OSError as error:
        raise refused(root, "a directory that can be listed", error) from error
    for path in present:
        is_ours = path.name in manifest.files or path.name == MANIFEST
        if not is_ours and path.suffix.lower() in MAX_BYTES and not path.name.startswith("."):
            advice = "Move it elsewhere, or export the bundle again"
            raise refused(root, f"only files that its {MANIFEST} lists", repr(path.name), advice)


def _check_listed(root: Path, manifest: Manifest, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in manifest.files:
            raise refused(root, f"a {MANIFEST} that lists {name!r}", "one without it")


def _opened(root: Path, name: str) -> BinaryIO:
    try:
        return open_no_follow(root / name)
    except OSError as error:
        raise refused(root, f"a file {name!r}", error) from error
    except ValueError as error:
        advice = "Copy the bundle with cp -rL, or export it again"
        raise refused(root, f"a regular file {name!r}", error, advice) from error


def _verified(root: Path, name: str, file: BinaryIO, expected: File) -> Stamp:
    """Compare an open file with what the manifest says of it."""
    if expected.bytes > (most := MAX_BYTES[Path(name).suffix]):
        raise refused(
            root, f"at most {most} bytes in {name!r}", f"a manifest with {expected.bytes}"
        )
    status = os.fstat(file.fileno())
    if status.st_size != expected.bytes:
        raise refused(root, f"{expected.bytes} bytes in {name!r}", f"{status.st_size}")
    try:
        digest = content_sha256(file)
    except OSError as error:
        raise refused(root, f"a file {name!r}", error) from error
    if digest != expected.sha256:
        raise refused(root, f"SHA-256 {expected.sha256[:12]}... of {name!r}", f"{digest[:12]}...")
    return stamp(status)
