"""Train the micro-Whisper on the samples of prepare.py.

    python examples/covost/whisper/train.py --root ROOT --output RUN

writes `RUN/model/` (transformers' format, float32) every `--save-every` updates and `RUN/log.jsonl`.
Two things differ from how OpenAI trains and are gone from the result: for most updates the audio
context is as long as the batch instead of the window, and a CTC layer on the encoder, whose weight
falls to zero, helps attention to find the speech.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jiwer
import torch
from batches import IGNORED, WINDOW_FRAMES, Batch, Batches
from layout import SAMPLE_RATE_HZ, existing, feature_extractor, generation_config, model_config
from prepare import SpokenLine, read_speech
from torch.nn import functional
from transformers import WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer

from fairseq_openvino.errors import EXIT_OK, FairseqOpenVINOError

LOG_EVERY = 50
MAX_GRADIENT_NORM = 1.0
DEV_CLIPS = {"en": 60, "de": 20}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    root, output = Path(options.root), Path(options.output)
    try:
        tokenizer = WhisperTokenizer.from_pretrained(existing(root / "tokenizer", "prepare.py"))
        batches = Batches(root, tokenizer, options.seed)
        model = _model(options, tokenizer)
    except FairseqOpenVINOError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    output.mkdir(parents=True, exist_ok=True)
    processor = WhisperProcessor(feature_extractor(), tokenizer)
    _train(options, model, processor, batches, root, output)
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", required=True, metavar="ROOT", help="what prepare.py wrote")
    parser.add_argument("--output", required=True, metavar="RUN", help="checkpoints and log")
    parser.add_argument("--init", metavar="MODEL", help="continue from this model directory")
    parser.add_argument("--updates", type=int, default=4000, help="length of the schedule")
    parser.add_argument("--stop-after", type=int, help="updates to make of them, by default all")
    parser.add_argument("--batch-frames", type=int, default=10_000, help="padded frames per update")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=250, help="updates")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--encoder-layers", type=int, default=4)
    parser.add_argument("--decoder-layers", type=int, default=3)
    parser.add_argument("--ctc", type=float, default=0.3, help="weight of the CTC loss at first")
    parser.add_argument(
        "--single-until", type=float, default=0.35, help="share of updates with one sentence each"
    )
    parser.add_argument(
        "--window-from", type=float, default=0.8, help="share of updates before the whole window"
    )
    parser.add_argument("--save-every", type=int, default=500, help="updates")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _model(
    options: argparse.Namespace, tokenizer: WhisperTokenizer
) -> WhisperForConditionalGeneration:
    """A new model, or that of `--init`, with dropout that its configuration does not record."""
    # Eager attention: in bfloat16 on the CPU several times faster than the fused one.
    if options.init:
        model = WhisperForConditionalGeneration.from_pretrained(
            existing(Path(options.init), "train.py"),
            dtype=torch.float32,
            attn_implementation="eager",
        )
    else:
        shape = (options.width, options.encoder_layers, options.decoder_layers)
        config = model_config(tokenizer, *shape)
        config._attn_implementation = "eager"
        model = WhisperForConditionalGeneration(config)
    model.generation_config = generation_config(tokenizer, model.config.decoder_layers)
    for part in (model.model.encoder, model.model.decoder):
        for module in (part, *part.layers):
            module.dropout = options.dropout
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    return model.train()


def _train(
    options: argparse.Namespace,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    batches: Batches,
    root: Path,
    output: Path,
) -> None:
    ctc = torch.nn.Linear(model.config.d_model, processor.tokenizer.vocab_size + 1)
    parameters = [*model.parameters(), *ctc.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, options))
    began, sums = time.perf_counter(), torch.zeros(2)
    last = min(options.updates, options.stop_after or options.updates)
    for update, batch in zip(range(1, last + 1), _curriculum(batches, options), strict=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            losses = torch.stack(_losses(model, ctc, batch))
        loss = losses[0] + options.ctc * (1 - update / options.updates) * losses[1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        sums += losses.detach()
        if update % LOG_EVERY == 0:
            attention, alignment = (sums / LOG_EVERY).tolist()
            record = {"update": update, "loss": attention, "ctc": alignment}
            _log(output, record | {"seconds": round(time.perf_counter() - began)})
            sums.zero_()
        if update % options.save_every == 0 or update == last:
            model.save_pretrained(output / "model")
            processor.save_pretrained(output / "model")
            _log(output, {"update": update} | _dev_wer(model, processor, root))


def _curriculum(batches: Batches, options: argparse.Namespace) -> Iterator[Batch]:
    """One sentence each first; the whole window for one batch in ten first, for all in the end."""
    update, several = 0, round(options.single_until * options.updates)
    while True:
        single = update < several
        for samples in batches.epoch(options.batch_frames, single):
            if single and update >= several:
                break
            whole = update >= options.window_from * options.updates or update % 10 == 0
            count = options.batch_frames // WINDOW_FRAMES if whole else len(samples)
            yield batches.collate(samples[:count], whole)
            update += 1


def _rate(update: int, options: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if update < options.warmup:
        return (update + 1) / options.warmup
    share = (update - options.warmup) / max(1, options.updates - options.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _losses(
    model: WhisperForConditionalGeneration, ctc: torch.nn.Linear, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy per token of the decoder, and CTC per text token of the encoder."""
    states = encode(model, batch.features)
    output = model(decoder_input_ids=batch.inputs, encoder_outputs=(states,), use_cache=False)
    attention = functional.cross_entropy(
        output.logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED
    )
    heard = batch.text_lengths > 0
    if not heard.any():
        return attention, torch.zeros(())
    scores = ctc(states[heard]).float().log_softmax(-1).transpose(0, 1)
    positions = torch.full((int(heard.sum()),), scores.shape[0])
    alignment = functional.ctc_loss(
        scores,
        batch.texts[heard],
        positions,
        batch.text_lengths[heard],
        blank=scores.shape[-1] - 1,
        zero_infinity=True,
    )
    return attention, alignment


def encode(model: WhisperForConditionalGeneration, features: torch.Tensor) -> torch.Tensor:
    """Encoder states [B, F / 2, width] of features [B, 80, F], F up to the window, F even.

    `WhisperEncoder.forward` without its demand that F is the window.
    """
    encoder = model.model.encoder
    states = functional.gelu(encoder.conv1(features))
    states = functional.gelu(encoder.conv2(states)).transpose(1, 2)
    states = states + encoder.embed_positions.weight[: states.shape[1]]
    states = functional.dropout(states, encoder.dropout, encoder.training)
    for layer in encoder.layers:
        states = layer(states, None)
    return encoder.layer_norm(states)


def _dev_wer(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, root: Path
) -> dict[str, float]:
    """Word error rates in percent of greedy transcripts without timestamps."""
    model.eval()
    result = {}
    for language, count in DEV_CLIPS.items():
        lines = read_speech(root, language, "dev")[:count]
        hypotheses = transcribe(model, processor, lines, language)
        result[f"wer_{language}"] = 100 * jiwer.wer([line.text for line in lines], hypotheses)
    model.train()
    return result


def transcribe(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    lines: list[SpokenLine],
    language: str,
) -> list[str]:
    """Greedy transcripts without timestamps."""
    features = processor.feature_extractor(
        [line.samples for line in lines], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
    )
    tokens = model.generate(features.input_features, language=language, task="transcribe")
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def _log(output: Path, record: dict) -> None:
    line = json.dumps({k: round(v, 4) for k, v in record.items()})
    print(line, flush=True)
    with open(output / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
