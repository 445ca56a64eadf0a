"""This project, as a peer of the others where recordings are compared; run by `.venv`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from protocol import BEST_OF, TEMPERATURES, Long, Peer, Segment, serve


class Ours(Peer):
    """A bundle, made once."""

    module, packages = "fairseq_openvino", ("openvino",)

    def convert(self) -> Path:
        """`export_whisper`; the source may be a bundle already."""
        if (self.source / "manifest.json").is_file():
            return self.source
        path = self.work / "bundle"
        if not path.exists():
            from fairseq_openvino.export.whisper import export_whisper

            partial = path.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            export_whisper(self.source, partial)
            partial.rename(path)
        return path

    def construct(self) -> None:
        """See `Peer`."""
        from fairseq_openvino.measure.engines import EngineSpec
        from fairseq_openvino.measure.engines.ours import BundleEngine

        self.engine = BundleEngine(
            EngineSpec(
                "ours",
                "",
                "ours",
                self.precision,
                threads=self.threads,
                bundle=str(self.convert()),
                cache_dir=self.cache,
            )  # fmt: skip
        )

    def hear(self, path: Path, how: Long, language: str) -> list[Segment]:
        """One file, with the defaults of the command but for what all engines are given."""
        mode = {"chunked": True} if how.batch else {"condition_on_previous_text": True}
        model: Any = self.engine.recognizer
        found = model.transcribe(
            path, beam=how.beam, language=language, timestamps=True, word_timestamps=how.words,
            temperature=TEMPERATURES, best_of=BEST_OF, **mode,
        )  # fmt: skip
        return [
            Segment(
                each.start, each.end, f" {each.text}",
                [(word.start, word.word) for word in each.words or ()] if how.words else None,
            )
            for each in found.segments
        ]  # fmt: skip

    def summary(self) -> str:
        """By graph and batch."""
        return self.engine.summary


if __name__ == "__main__":
    serve(Ours)
