"""The results table of the shipped models: eager Fairseq beside OpenVINO in f32, bf16 and INT8.

    python examples/covost/evaluate.py WORK [--output FILE]

Every model is exported, quantized, and decodes its test set by `fairseq-generate` as the recipe does
(beam 5, --max-tokens 50000), in rounds in which the engines take turns. The cascade translates what each
engine recognised. A model that is not there is left out, with a line that says so.
"""

from __future__ import annotations

import statistics
import string
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece

from fairseq_openvino import machine
from fairseq_openvino.atomic import write_file
from fairseq_openvino.commands.verify import PACKAGE, Run, run_generate
from fairseq_openvino.metrics import Normalizer, bootstrap_difference, score
from fairseq_openvino.tables import markdown_table

HERE = Path(__file__).parent
OUTPUT = HERE / "results" / "covost.md"
EAGER, INT8, WEIGHTS = "eager", "INT8", "INT8*"
ENGINES = (EAGER, "f32", "bf16", INT8)
SPEECH = ("--task", "speech_to_text", "--max-tokens", "50000")
TEXT = ("--task", "translation", "--source-lang", "en", "--target-lang", "de", "--max-tokens", "4000",
        "--post-process", "sentencepiece")  # fmt: skip
COMMON = ("--beam", "5", "--num-workers", "0", "--required-batch-size-multiple", "1",
          "--no-progress-bar", "--user-dir", str(PACKAGE))  # fmt: skip
HEADER = ("task", "model", "engine", "score", "difference [95 %]", "identical", "time, s", "speed")
LEGEND = """\
Score: WER in % (lower case, without punctuation) or BLEU (sacrebleu, 13a); difference: to eager Fairseq, with
the 95 % interval of a paired bootstrap; identical: best hypotheses that are eager Fairseq's; time: Fairseq's
generation timer over the test set, median of the rounds; INT8: what `fairseq-openvino quantize` makes of the
bundle, text: --ov-precision int8; INT8*: the same for speech, as the quality gate of `quantize` refused all
of its trials."""
PLAIN = Normalizer(
    "lower case, without punctuation",
    lambda text: text.lower().translate(str.maketrans("", "", string.punctuation)),
)


@dataclass(frozen=True)
class Test:
    """A test set of a shipped model."""

    task: str
    model: str
    directory: Path
    subset: str
    metric: str = "bleu"


MODELS = HERE / "models"
ASR = Test("ASR en", "s2t_transformer_xs", MODELS / "asr_en", "test_asr_en", "wer")
TRANSLATION = Test("MT en-de", "transformer", MODELS / "mt_en_de", "test")
SPEECH_TESTS = (
    ASR,
    Test("ST en-de", "s2t_transformer_xs", HERE / "mini", "test_st_en_de"),
    Test("ST en-de", "s2t_conformer", MODELS / "st_en_de_conformer", "test_st_en_de"),
    Test("ST en-de", "s2t_berard", MODELS / "st_en_de_berard", "test_st_en_de"),
    Test("ST en-de", "multilingual", MODELS / "st_en_deca", "test_st_en_de"),
    Test("ST en-ca", "multilingual", MODELS / "st_en_deca", "test_st_en_ca"),
)


@dataclass
class Runs:
    """What the engines made of a test set."""

    test: Test
    references: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    """In the order of the references, by engine."""
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, engine: str, runs: list[Run]) -> None:
        """The rounds of one engine; the first engine is eager Fairseq."""
        numbers = sorted(runs[0].references)
        self.references = [runs[0].references[number] for number in numbers]
        self.texts[engine] = [runs[0].hypotheses[number][0].text for number in numbers]
        self.seconds[engine] = statistics.median(run.seconds for run in runs)

    def cells(self) -> Iterator[list[str]]:
        """Rows of the table."""
        base, metric = self.texts[EAGER], self.test.metric
        for engine, texts in self.texts.items():
            found = score(self.references, texts, metric, PLAIN).value
            difference, identical = "-", sum(a == b for a, b in zip(base, texts, strict=True))
            if engine != EAGER:
                change = bootstrap_difference(
                    self.references, base, texts, metric, normalizer=PLAIN
                )
                difference = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*change)
            yield [
                self.test.task, self.test.model, engine, f"{metric.upper()} {found:.2f}", difference,
                f"{identical} of {len(texts)}", f"{self.seconds[engine]:.2f}",
                f"{self.seconds[EAGER] / self.seconds[engine]:.1f}x",
            ]  # fmt: skip


def main() -> int:
    """Print and write the table; return 1 if a model is missing."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "work", type=Path, help="directory for bundles and test sets of the cascade"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="Markdown file")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    work, rounds = arguments.work.absolute(), arguments.rounds
    work.mkdir(parents=True, exist_ok=True)
    found: list[Runs] = []
    for test in SPEECH_TESTS:
        if _is_there(test):
            found.append(speech(test, work, rounds))
    if _is_there(TRANSLATION):
        found.append(text(TRANSLATION, work, rounds))
        if found[0].test == ASR:
            found.append(cascade(found[0], found[-1], work))
    rows = [row for runs in found for row in runs.cells()]
    provenance = "; ".join(f"{name} {value}" for name, value in machine.provenance().items())
    lines = [
        "# CoVoST in miniature: results of the shipped models", "",
        f"Made by `make covost`; test sets of 100 utterances, beam 5, {rounds} rounds.", "",
        *markdown_table(HEADER, rows), "", LEGEND, "", provenance,
    ]  # fmt: skip
    write_file(arguments.output, ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))
    return 0 if len(found) == len(SPEECH_TESTS) + 2 else 1


def _is_there(test: Test) -> bool:
    there = (test.directory / "checkpoint.pt").is_file()
    if not there:
        print(f"{test.task}, {test.model}: left out, no {test.directory / 'checkpoint.pt'}")
    return there


def speech(test: Test, work: Path, rounds: int) -> Runs:
    """Export and quantize once for each model, then decode."""
    directory, bundle = test.directory, work / test.directory.name
    config = next(directory.glob("config*.yaml"))
    checkpoint = str(directory / "checkpoint.pt")
    quantized = bundle.with_name(f"{bundle.name}-int8")
    if not bundle.is_dir():
        run("export", "--path", checkpoint, "--data", str(directory), "--config-yaml", config.name,
            "--output", str(bundle))  # fmt: skip
    passed = quantized.is_dir() or run(
        "quantize", str(bundle), "--output", str(quantized), "--calibration",
        str(directory / f"{test.subset}.tsv"), "--config-yaml", str(config),
        "--inference-precision", "bf16" if machine.cpu().has_bf16 else "f32", "--accept-uncertain",
        may_fail="The quality gate failed",
    )  # fmt: skip
    tagged = "prepend_tgt_lang_tag: true" in config.read_text()
    words = [
        str(directory), *SPEECH, "--config-yaml", config.name, "--gen-subset", test.subset,
        "--path", checkpoint, *(["--prefix-size", "1"] if tagged else []),
    ]  # fmt: skip
    engine = ["--ov-engine", "--ov-model"]
    flags = {
        EAGER: [],
        "f32": [*engine, str(bundle), "--ov-precision", "f32"],
        "bf16": [*engine, str(bundle), "--ov-precision", "bf16"],
    }
    if passed:
        flags[INT8] = [*engine, str(quantized)]
    else:
        flags[WEIGHTS] = [*engine, str(bundle), "--ov-precision", "int8"]
    return decoded(test, words, flags, rounds)


def text(test: Test, work: Path, rounds: int) -> Runs:
    """Binarize the test set and translate it."""
    data = binarized(test.directory / "test.en", test.directory, work / "mt")
    return translated(test, data, ENGINES, rounds, work)


def translated(test: Test, data: Path, engines: tuple[str, ...], rounds: int, work: Path) -> Runs:
    """A binarized test set by the text model."""
    words = [
        str(data),
        *TEXT,
        "--path",
        str(test.directory / "checkpoint.pt"),
        "--gen-subset",
        "test",
    ]
    flags: dict[str, list[str]] = {}
    for engine in engines:
        ours = [
            "--ov-engine",
            "--ov-cache-dir",
            str(work / "cache"),
            "--ov-precision",
            engine.lower().removesuffix("*"),
        ]
        flags[engine] = [] if engine == EAGER else ours
    return decoded(test, words, flags, rounds)


def cascade(recognised: Runs, translation: Runs, work: Path) -> Runs:
    """Each engine translates the text that it recognised; times of both add up."""
    test = Test("cascade en-de", "ASR, then MT", translation.test.directory, "test")
    both = Runs(test, translation.references)
    for engine, texts in recognised.texts.items():
        target = work / f"cascade-{engine}"
        target.mkdir(exist_ok=True)
        source = target / "recognised.en"
        source.write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")
        data = binarized(source, test.directory, target / "data")
        found = translated(test, data, (engine,), 1, work)
        both.texts[engine] = found.texts[engine]
        both.seconds[engine] = recognised.seconds[engine] + found.seconds[engine]
    return both


def binarized(source: Path, model: Path, target: Path) -> Path:
    """English lines and the shipped references as `fairseq-preprocess` makes them of subwords."""
    target.mkdir(parents=True, exist_ok=True)
    subwords = sentencepiece.SentencePieceProcessor(model_file=str(next(model.glob("*.model"))))
    for language, path in (("en", source), ("de", model / "test.de")):
        lines = path.read_text(encoding="utf-8").splitlines()
        pieces = (" ".join(subwords.encode(line, out_type=str)) for line in lines)
        (target / f"pieces.{language}").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    command = [
        sys.executable, "-m", "fairseq_cli.preprocess", "--source-lang", "en", "--target-lang", "de",
        "--srcdict", str(model / "dict.en.txt"), "--tgtdict", str(model / "dict.de.txt"),
        "--testpref", str(target / "pieces"), "--destdir", str(target), "--workers", "1",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return target


def decoded(test: Test, words: list[str], flags: dict[str, list[str]], rounds: int) -> Runs:
    """All engines in turn, `rounds` times."""
    runs: dict[str, list[Run]] = {engine: [] for engine in flags}
    for number in range(rounds):
        for engine, own in flags.items():
            print(f"{test.task}, {test.model}: {engine}, round {number + 1}", flush=True)
            runs[engine].append(run_generate([*words, *COMMON, *own]))
    found = Runs(test)
    for engine, own_runs in runs.items():
        found.add(engine, own_runs)
    return found


def run(*words: str, may_fail: str | None = None) -> bool:
    """A command of the package; its output is shown only if it fails, and not with the error `may_fail`."""
    print(f"fairseq-openvino {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "fairseq_openvino", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not (may_fail and may_fail in done.stderr):
        sys.exit(f"fairseq-openvino {words[0]} failed:\n{done.stdout}{done.stderr}")
    return not done.returncode


if __name__ == "__main__":
    sys.exit(main())
