"""Filter banks of all clips in one stored ZIP file, and the sample-rate policy."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
from covost_corpus import clip_id

from fairseq_openvino.errors import AudioError, OptionError
from fairseq_openvino.speech.audio import damage_collected, read_audio
from fairseq_openvino.speech.features import fbank

ZIP_NAME = "fbank80.zip"
RECORD_NAME = "fbank80.json"
LOCAL_HEADER = struct.Struct("<26xHH")
"""Fixed part of a ZIP member's header; the two fields are the lengths of name and extra data."""
CHUNK_CLIPS = 32
PROGRESS_EVERY = 500


@dataclass(frozen=True)
class Audio:
    """What a manifest says about one clip: a reference below `audio_root` and frames of 10 ms."""

    reference: str
    n_frames: int


@dataclass(frozen=True)
class Extraction:
    """Usable clips by id, unusable ones and those cut short with the reason, the rate of all in Hz."""

    audio: dict[str, Audio]
    skipped: dict[str, str]
    damaged: dict[str, str]
    sample_rate_hz: int


def extract(root: Path, paths: list[str], rate_hz: int | None, workers: int) -> Extraction:
    """Features of every clip in `root/fbank80.zip`; a complete ZIP file from before is reused.

    Args:
        root: directory that holds `clips/`.
        paths: file names of the clips.
        rate_hz: resample to this rate; None keeps the clips' own, which must then agree.
        workers: processes.
    """
    if (root / ZIP_NAME).exists():
        return _reuse(root, paths, rate_hz)
    rate_hz = rate_hz or common_rate(root, paths)
    archive, record = root / ZIP_NAME, root / RECORD_NAME
    unfinished = archive.with_name(archive.name + ".partial")
    skipped: dict[str, str] = {}
    damaged: dict[str, str] = {}
    results = _map(partial(_features, rate_hz=rate_hz), root, paths, workers)
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as packed:
        for path, features, damage in results:
            if features is None:
                skipped[clip_id(path)] = damage
                continue
            packed.writestr(zipfile.ZipInfo(clip_id(path) + ".npy"), _npy(features))
            if damage:
                damaged[clip_id(path)] = damage
    _write_json(record, {"sample_rate": rate_hz, "skipped": skipped, "damaged": damaged})
    unfinished.replace(archive)
    return Extraction(_index(archive), skipped, damaged, rate_hz)


def measure(root: Path, paths: list[str], workers: int) -> Extraction:
    """References to the clips themselves, with the frames their features will have."""
    rate_hz = common_rate(root, paths)
    audio, skipped, damaged = {}, {}, {}
    for path, features, damage in _map(partial(_features, rate_hz=rate_hz), root, paths, workers):
        if features is None:
            skipped[clip_id(path)] = damage
            continue
        audio[clip_id(path)] = Audio(f"clips/{path}", len(features))
        if damage:
            damaged[clip_id(path)] = damage
    return Extraction(audio, skipped, damaged, rate_hz)


def common_rate(root: Path, paths: list[str]) -> int:
    """The one sample rate of all readable clips in Hz, from their headers."""
    first: tuple[int, str] | None = None
    for path in paths:
        rate_hz = _header_rate(root / "clips" / path)
        if rate_hz is None:
            continue
        first = first or (rate_hz, path)
        if rate_hz != first[0]:
            raise OptionError(
                f"Reading sample rates failed in {root / 'clips'}: expected one rate for all, "
                f"got {first[0]} Hz ({first[1]}) and {rate_hz} Hz ({path}). "
                f"Resample, for instance with --sample-rate {min(rate_hz, first[0])}."
            )
    if first is None:
        raise AudioError(
            f"Reading sample rates failed in {root / 'clips'}: expected readable clips, got none "
            f"among {len(paths)}. Check the download."
        )
    return first[0]


def _header_rate(path: Path) -> int | None:
    """None if the header cannot be read: decoding will say why."""
    try:
        return int(soundfile.info(path).samplerate)
    except (soundfile.LibsndfileError, OSError):
        return None


def _reuse(root: Path, paths: list[str], rate_hz: int | None) -> Extraction:
    archive, record = root / ZIP_NAME, root / RECORD_NAME
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        recorded_hz, skipped = int(known["sample_rate"]), dict(known["skipped"])
        damaged = dict(known.get("damaged", {}))
        audio = _index(archive)
    except (OSError, ValueError, KeyError, TypeError, struct.error, zipfile.BadZipFile) as error:
        raise OptionError(
            f"Reusing features failed in {archive}: expected features and their sample rate in "
            f"{RECORD_NAME}, got {error!r}. Delete {ZIP_NAME} to compute the features again."
        ) from error
    if rate_hz is None:
        rate_hz = next(filter(None, (_header_rate(root / "clips" / path) for path in paths)), None)
    if rate_hz != recorded_hz:
        raise OptionError(
            f"Reusing features failed in {archive}: expected features at {rate_hz} Hz, "
            f"got {recorded_hz} Hz. Use --sample-rate {recorded_hz} or delete {ZIP_NAME}."
        )
    absent = [path for path in paths if clip_id(path) not in audio and clip_id(path) not in skipped]
    if absent:
        raise OptionError(
            f"Reusing features failed in {archive}: expected all {len(paths)} clips, "
            f"got none for {len(absent)} of them ({absent[0]}). Delete {ZIP_NAME} and run again."
        )
    print(f"{archive} exists: features are reused", flush=True)
    return Extraction(audio, skipped, damaged, recorded_hz)


def _map(
    function: partial, root: Path, paths: list[str], workers: int
) -> Iterable[tuple[str, np.ndarray | None, str]]:
    """Path, features and what `_features` says about them."""
    files = [str(root / "clips" / path) for path in paths]
    # A fork of a process with threads, as OpenVINO's, may wait for a lock that nobody holds there.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        results = pool.map(function, files, chunksize=CHUNK_CLIPS)
        for number, (path, result) in enumerate(zip(paths, results, strict=True), start=1):
            if number % PROGRESS_EVERY == 0 or number == len(paths):
                print(f"features of {number} of {len(paths)} clips", flush=True)
            yield path, *result


def _features(file: str, rate_hz: int) -> tuple[np.ndarray | None, str]:
    """Filter banks, shape (frames, 80), float32, and what is missing of the clip ("" if nothing).

    Without any audio: None, and the reason.
    """
    with damage_collected() as damage:
        try:
            waveform, _ = read_audio(file, rate_hz)
        except AudioError as error:
            return None, str(error)
    return fbank(waveform, rate_hz), "; ".join(damage)


def _npy(features: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, features)
    return buffer.getvalue()


def _index(archive: Path) -> dict[str, Audio]:
    """Byte ranges and frame counts of all members."""
    audio = {}
    with zipfile.ZipFile(archive) as packed, open(archive, "rb") as raw:
        for member in packed.infolist():
            raw.seek(member.header_offset)
            lengths = LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size))
            offset = member.header_offset + LOCAL_HEADER.size + sum(lengths)
            raw.seek(offset)
            np.lib.format.read_magic(raw)
            (n_frames, _), _, _ = np.lib.format.read_array_header_1_0(raw)
            reference = f"{archive.name}:{offset}:{member.file_size}"
            audio[member.filename.removesuffix(".npy")] = Audio(reference, n_frames)
    return audio


def _write_json(path: Path, content: dict[str, object]) -> None:
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(unfinished, path)
