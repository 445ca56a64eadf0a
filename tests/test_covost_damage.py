"""A damaged Common Voice download goes through the recipe: nothing is dropped without a word."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

RECIPE = Path(__file__).parents[1] / "examples" / "covost"
sys.path.insert(0, str(RECIPE))

import prep_covost  # noqa: E402
import synthesize  # noqa: E402

RATE_HZ = 16_000
GOOD = {f"good_{index}.mp3": split for index, split in enumerate(["train"] * 4 + ["dev", "test"])}
DAMAGED = {
    "gone.mp3": "train", "other_extension.mp3": "dev", "empty_file.mp3": "train",
    "not_audio.mp3": "test", "cut.mp3": "train", "no_frames.mp3": "train",
    "minute_train.mp3": "train", "minute_dev.mp3": "dev", "no_sentence.mp3": "train",
    "no_translation.mp3": "train", "unknown_split.mp3": "invalidated",
}  # fmt: skip
SUMMARY = """\
  problem                            train  dev  test  no split
  damaged row                        0      0    0     6
  duplicate row                      0      0    0     2
  translation without clip           2      0    0     0
  missing file                       1      1    0     0
  empty file                         1      0    0     0
  not decodable                      0      0    1     0
  truncated, used as far as it goes  1      0    0     0
  filtered: shorter than 5 frames    1      0    0     0
  filtered: longer than 3000 frames  1      0    0     0
  filtered: no text                  1      0    0     0
  of no split of CoVoST              0      0    0     1
  clip without translation           0      0    0     1
"""


def _speech(seconds: float) -> np.ndarray:
    noise = np.random.default_rng(5).standard_normal(int(seconds * RATE_HZ))
    return (0.1 * noise).astype(np.float32)


def _write_clips(clips: Path) -> None:
    clips.mkdir(parents=True)
    for name in (*GOOD, *DAMAGED, "unlisted.mp3"):
        if name != "minute_train.mp3":
            synthesize.write_mp3(clips / name, _speech(70.0 if name == "minute_dev.mp3" else 0.5))
    shutil.copy(clips / "minute_dev.mp3", clips / "minute_train.mp3")
    (clips / "gone.mp3").unlink()
    (clips / "other_extension.mp3").rename(clips / "other_extension.wav")
    (clips / "empty_file.mp3").write_bytes(b"")
    (clips / "not_audio.mp3").write_bytes(b"<html>404</html>" * 40)
    whole = clips / "cut.mp3"
    whole.write_bytes(whole.read_bytes()[:900])  # inside a frame
    soundfile.write(clips / "no_frames.mp3", _speech(0.01), RATE_HZ, format="WAV")


def _write_tables(root: Path) -> None:
    """`validated.tsv` as Common Voice 4 has it, with the line ends of Windows, and CoVoST's table."""
    rows = ["\t".join(synthesize.VALIDATED_COLUMNS)]
    for name in (*GOOD, *DAMAGED, "unlisted.mp3", "good_0.mp3"):
        sentence = "" if name == "no_sentence.mp3" else 'He said "never'
        rows.append(f"speaker\t{name}\t{sentence}\t2\t0\t\tother\t")
    rows += ["speaker\ttoo_few.mp3\tA sentence", "speaker\ttoo_many.mp3\t1\t2\t3\t4\t5\t6\t7", ""]
    rows += ["speaker\tnul.mp3\tA \0 sentence\t2\t0\t\t\t", "the end of a downl"]
    text = "\ufeff" + "\r\n".join(rows)
    (root / "validated.tsv").write_bytes(
        text.encode() + b"\r\nspeaker\t\xff\xfe\tx\t2\t0\t\t\t\r\n"
    )
    covost = ["path\ttranslation\tsplit"]
    for name, split in {**GOOD, **DAMAGED, "too_few.mp3": "train", "nul.mp3": "train"}.items():
        text = "" if name == "no_translation.mp3" else 'Er sagte "nie'
        covost.append(f"{name}\t{text}\t{split}")
    covost += ["good_1.mp3\tnoch einmal\ttest"]
    (root / "covost_v2.en_de.tsv").write_text("\n".join(covost) + "\n", "utf-8")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("download") / "en"
    _write_clips(root / "clips")
    _write_tables(root)
    return root


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE))


def _prepare(root: Path, *options: str) -> int:
    arguments = ["-d", str(root.parent), "-s", "en", "--vocab-type", "char", "--workers", "1"]
    return prep_covost.main([*arguments, *options])


def test_every_row_is_used_or_listed(damaged: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second run reuses the features and must still know
        assert _prepare(damaged, "-t", "de") == 1
        assert capfd.readouterr().out.endswith(SUMMARY)
        listed = _rows(damaged / "skipped_st_en_de.tsv")
    used = {
        split: {row["id"] for row in _rows(damaged / f"{split}_st_en_de.tsv")}
        for split in ("train", "dev", "test")
    }
    assert used == {
        "train": {"good_0", "good_1", "good_2", "good_3", "cut", "no_sentence"},
        "dev": {"good_4", "minute_dev"},
        "test": {"good_5"},
    }
    row = _rows(damaged / "train_st_en_de.tsv")[0]
    assert (row["tgt_text"], row["src_text"]) == ('Er sagte "nie', 'He said "never')
    reasons = {row["path"]: row["reason"] for row in listed}
    assert len(listed) == 20
    assert DAMAGED.keys() - reasons.keys() == {"minute_dev.mp3", "no_sentence.mp3"}
    assert reasons["line 21 of validated.tsv"] == "3 fields instead of 8"
    assert reasons["good_1.mp3"] == "again in line 21 of covost_v2.en_de.tsv"
    assert reasons["cut.mp3"].endswith("(it ends inside a frame)")
    assert "got No such file" in reasons["gone.mp3"]


def test_recognition_needs_the_sentence_instead(damaged: Path) -> None:
    assert _prepare(damaged) == 1
    train = {row["id"] for row in _rows(damaged / "train_asr_en.tsv")}
    assert "no_translation" in train and "no_sentence" not in train
