"""The server, asked over HTTP: what it answers is what `transcribe` makes of the file."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import uvicorn
from conftest import MICRO_WHISPER

from fairseq_openvino import load_model
from fairseq_openvino.cli import main
from fairseq_openvino.errors import EXIT_ENVIRONMENT
from fairseq_openvino.model import News
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.server import app as server
from fairseq_openvino.server.app import application
from fairseq_openvino.speech.writers import document, openai_result

CLIPS = sorted((MICRO_WHISPER / "clips").iterdir())[:4]
PATH = "/v1/audio/transcriptions"
EDGE = "----edge"


@pytest.fixture(scope="module")
def model(micro_whisper: Path) -> Recognizer:
    return load_model(micro_whisper)


@pytest.fixture(scope="module")
def port(model: Recognizer) -> Iterator[int]:
    """Of a server, as the command runs it."""
    config = uvicorn.Config(application(lambda: model, "micro"), port=0, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        thread.join(0.01)
    yield running.servers[0].sockets[0].getsockname()[1]
    running.should_exit = True
    thread.join()


def ask(
    port: int, clip: Path | bytes, path: str = PATH, **fields: str | list[str]
) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of a request, in the form of the client `openai`."""
    answer = sent(port, clip, path, **fields).getresponse()
    return answer.status, answer.read().decode(), dict(answer.headers)


def sent(
    port: int, clip: Path | bytes, path: str = PATH, **fields: str | list[str]
) -> http.client.HTTPConnection:
    content, name = (clip, "x") if isinstance(clip, bytes) else (clip.read_bytes(), clip.name)
    body = b"".join(
        f'--{EDGE}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, values in ({"model": "micro"} | fields).items()
        for value in ([values] if isinstance(values, str) else values)
    )
    disposition = f'form-data; name="file"; filename="{name}"'
    body += f"--{EDGE}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
    body += content + f"\r\n--{EDGE}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(
        "POST", path, body, {"Content-Type": f"multipart/form-data; boundary={EDGE}"}
    )
    return connection


def error(answer: tuple[int, str, dict[str, str]]) -> tuple[int, Any]:
    return answer[0], json.loads(answer[1])["error"]


def test_formats_are_those_of_the_command(port: int, model: Recognizer) -> None:
    clip = CLIPS[0]
    text = model.transcribe(clip).text
    timed = model.transcribe(clip, **model.timed({}))
    assert json.loads(ask(port, clip)[1])["text"] == text
    assert ask(port, clip, response_format="text")[1] == text + "\n"
    for name in ("srt", "vtt"):
        assert ask(port, clip, response_format=name)[1] == document(name, timed)
    found = json.loads(ask(port, clip, response_format="verbose_json")[1])
    assert found["segments"] == json.loads(json.dumps(openai_result(timed)["segments"]))
    assert (found["task"], found["duration"]) == ("transcribe", timed.seconds)
    assert "words" not in found


def test_words_and_options_reach_the_model(port: int, model: Recognizer) -> None:
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    found = json.loads(ask(port, CLIPS[1], language="german", **fields)[1])
    wanted = model.transcribe(CLIPS[1], timestamps=True, word_timestamps=True, language="de")
    words = [word for segment in wanted.segments for word in segment.words or ()]
    assert [each["word"] for each in found["words"]] == [word.word.strip() for word in words]
    assert found["language"] == "german"
    translated = json.loads(ask(port, CLIPS[1], "/v1/audio/translations")[1])["text"]
    assert translated == model.transcribe(CLIPS[1], task="translate").text


def test_clients_at_the_same_time_get_their_own_texts(port: int, model: Recognizer) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda clip: json.loads(ask(port, clip)[1])["text"], CLIPS * 2))
    assert found == [model.transcribe(clip).text for clip in CLIPS] * 2


def test_what_is_wrong_is_said_as_openai_says_it(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, found = error(ask(port, b"no audio"))
    assert (status, found["param"], found["type"]) == (400, "file", "invalid_request_error")
    assert "'x'" in found["message"]
    assert error(ask(port, CLIPS[0], model="other"))[1]["code"] == "model_not_found"
    for fields in ({"response_format": "xml"}, {"temperature": "hot"}, {"stream": "true"}):
        status, found = error(ask(port, CLIPS[0], **fields))
        assert (status, found["param"]) == (400, next(iter(fields)))
    assert ask(port, CLIPS[0], stream="false")[0] == 200
    granularities = "timestamp_granularities[]"
    for fields in (
        {granularities: ["word"]},
        {granularities: ["words"], "response_format": "verbose_json"},
        {"language": ["en", "de"]},
    ):
        status, found = error(ask(port, CLIPS[0], **fields))
        assert (status, found["param"]) == (400, next(iter(fields))), "it would have no effect"
    status, found = error(ask(port, CLIPS[0], language="klingon"))
    assert (status, found["param"]) == (400, "language")
    monkeypatch.setattr(server, "MAX_BYTES", 1000)
    assert error(ask(port, b"x" * 2000))[0] == 413
    monkeypatch.setattr(server, "MAX_WAITING", 0)
    status, _, headers = ask(port, CLIPS[0])
    assert (status, headers["retry-after"]) == (503, "5")


def test_what_is_missing_of_the_audio_is_said(port: int, model: Recognizer) -> None:
    assert "x-audio-damage" not in ask(port, CLIPS[0])[2]
    cut = wav(1)[:-8000]
    for wanted in ("json", "srt"):
        status, _, headers = ask(port, cut, response_format=wanted)
        assert (status, headers["x-audio-damage"]) == (200, model.transcribe(cut).damage)


def test_a_client_that_leaves_makes_room(
    port: int, model: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, heard, begun = model.follow, list[News](), threading.Semaphore(0)

    def followed(*audios: Any, **options: Any) -> Iterator[News]:
        for news in follow(*audios, **options):
            heard.append(news)
            begun.release()
            yield news

    monkeypatch.setattr(model, "follow", followed)
    leaving = [sent(port, wav(180)) for _ in range(server.LANES)]
    for _ in leaving:
        begun.acquire()
    for each in leaving:
        each.close()
    assert ask(port, CLIPS[0])[0] == 200
    assert [news.duration < 60 for news in heard if news.result] == [True], "they were given up"


def wav(seconds: int) -> bytes:
    """A recording of a clip again and again."""
    samples, rate = soundfile.read(CLIPS[0])
    file = io.BytesIO()
    soundfile.write(file, np.resize(samples, seconds * rate), rate, format="WAV")
    return file.getvalue()


def test_an_address_that_is_taken_is_refused(
    port: int, micro_whisper: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for taken in (port, 1 << 16):
        command = ["serve", "--model", str(micro_whisper), "--port", str(taken)]
        assert main(command) == EXIT_ENVIRONMENT
        assert f"in 127.0.0.1:{taken}: expected a free address" in capsys.readouterr().err


def test_it_says_what_there_is(port: int) -> None:
    for path, wanted in (("/health", "ok"), ("/v1/models", "micro")):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path)
        assert wanted in connection.getresponse().read().decode()
