"""The ASGI application: `POST /v1/audio/transcriptions` and `/v1/audio/translations`, as OpenAI's.

A result is what `Recognizer.transcribe` makes of the file. Audio comes from strangers, so it is decoded in
processes of its own. Source: the API reference of OpenAI, "Audio".
"""

from __future__ import annotations

import asyncio
import io
import math
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message

from fairseq_openvino.errors import AudioError, FairseqOpenVINOError, OptionError
from fairseq_openvino.model import Transcript
from fairseq_openvino.recognizer import Recognizer
from fairseq_openvino.speech.languages import LANGUAGES
from fairseq_openvino.speech.writers import document, openai_result
from fairseq_openvino.whisper.options import TRANSCRIBE, TRANSLATE

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = "timestamp_granularities[]"
FIELDS = frozenset({
    "file", "model", "language", "prompt", "response_format", "temperature", "stream", GRANULARITIES,
})  # fmt: skip
DAMAGE = "X-Audio-Damage"
"""Header of an answer: what is missing of the audio, in words."""
MAX_BYTES = 1 << 30
"""Of a request."""
MAX_WAITING = 64
"""Requests that are being answered or wait; more are told to come again."""
LANES = 2
"""Files decoded at the same time: while the audio of one is read, the model works at the other."""
RETRY_SECONDS = 5


class Refused(HTTPException):
    """A request that cannot be answered, in the words of OpenAI's errors."""

    def __init__(
        self, status: int, message: str, field: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(status, message)
        self.field, self.code = field, code


def application(load: Callable[[], Recognizer], name: str) -> Starlette:
    """The application.

    Args:
        load: gives the model; called when the server starts.
        name: of the model, as requests name it.
    """
    service = _Service(name)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.recognizer = await asyncio.to_thread(load)
        service.recognizer.check_supported()
        yield
        service.lanes.shutdown(cancel_futures=True)

    routes = [
        Route("/v1/audio/transcriptions", service.transcriptions, methods=["POST"]),
        Route("/v1/audio/translations", service.translations, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/health", service.health),
    ]
    handlers = {HTTPException: _refused, FairseqOpenVINOError: _failed, ClientDisconnect: _unheard}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


class _Service:
    recognizer: Recognizer

    def __init__(self, name: str) -> None:
        self._name, self._waiting = name, 0
        self.lanes = ThreadPoolExecutor(LANES)

    async def transcriptions(self, request: Request) -> Response:
        return await self._answered(request, TRANSCRIBE)

    async def translations(self, request: Request) -> Response:
        return await self._answered(request, TRANSLATE)

    async def models(self, _: Request) -> Response:
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "fairseq-openvino"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _answered(self, request: Request, task: str) -> Response:
        if self._waiting >= MAX_WAITING:
            message = f"{MAX_WAITING} requests are waiting. Try again in {RETRY_SECONDS} s."
            raise Refused(503, message, code="overloaded")
        self._waiting += 1
        try:
            async with _bounded(request).form(max_files=1) as form:
                upload, wanted, options = self._read(form, task)
                found = await self._while_asked(request, upload, options)
        finally:
            self._waiting -= 1
        answer = _written(found, wanted, task, "word" in form.getlist(GRANULARITIES))
        if found.damage is not None:
            answer.headers[DAMAGE] = ascii(found.damage)[1:-1]
        return answer

    async def _while_asked(
        self, request: Request, upload: UploadFile, options: dict[str, Any]
    ) -> Transcript:
        """The transcript; once nobody waits for it, it is given up.

        Raises:
            ClientDisconnect: it was.
        """
        gone, loop = threading.Event(), asyncio.get_running_loop()
        work = loop.run_in_executor(self.lanes, self._transcribed, upload, options, gone)
        leaving = loop.create_task(_disconnected(request))
        either: set[asyncio.Future[Any]] = {work, leaving}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.set()  # too late, if the work is done
            leaving.cancel()
        return await work

    def _read(self, form: FormData, task: str) -> tuple[UploadFile, str, dict[str, Any]]:
        """The file, the format, and options of `Recognizer.transcribe`."""
        _check_fields(form)
        upload, model = form.get("file"), form.get("model")
        if not isinstance(upload, UploadFile):
            raise Refused(400, "The field 'file' must be an uploaded file.", "file")
        if model != self._name:
            message = f"The model {model!r} does not exist; there is {self._name!r}."
            raise Refused(404, message, "model", "model_not_found")
        wanted = str(form.get("response_format") or "json")
        if wanted not in FORMATS:
            raise Refused(
                400, f"'response_format' must be one of {', '.join(FORMATS)}.", "response_format"
            )
        options: dict[str, Any] = {
            field: str(form[field]) for field in ("language", "prompt") if form.get(field)
        }
        known = self.recognizer.family.options.__dataclass_fields__
        if task == TRANSLATE or "task" in known:
            options["task"] = task
        if temperature := _number(str(form.get("temperature") or 0)):  # 0: as if none were given
            options["temperature"] = temperature
        if "word" in form.getlist(GRANULARITIES):
            options["word_timestamps"] = True
        if wanted not in ("json", "text"):
            options = self.recognizer.timed(options, words="word_timestamps" in options)
        return upload, wanted, options

    def _transcribed(
        self, upload: UploadFile, options: dict[str, Any], gone: threading.Event
    ) -> Transcript:
        """In a lane; `gone` is set when nobody waits any more."""
        if gone.is_set():  # before its turn came
            raise ClientDisconnect
        upload.file.seek(0)
        for news in self.recognizer.follow([_Upload(upload)], isolate_audio=True, **options):
            if isinstance(news.result, Transcript):
                return news.result
            if news.result is not None:
                raise news.result
            if gone.is_set():
                break
        raise ClientDisconnect


class _Upload(io.BufferedReader):
    """An uploaded file under the name that its sender gave it."""

    def __init__(self, upload: UploadFile) -> None:
        super().__init__(upload.file)  # type: ignore[arg-type]
        self._name = upload.filename or "upload"

    @property
    def name(self) -> str:
        """See `speech.sources.source_name`."""
        return self._name


def _written(found: Transcript, wanted: str, task: str, with_words: bool) -> Response:
    """A transcript in one of `FORMATS`."""
    usage = {"type": "duration", "seconds": math.ceil(found.seconds)}
    if wanted == "json":
        return JSONResponse({"text": found.text, "usage": usage})
    if wanted == "text":
        return PlainTextResponse(found.text + "\n")
    if wanted in ("srt", "vtt"):
        return PlainTextResponse(document(wanted, found))
    content = openai_result(found)
    language = LANGUAGES.get(found.language or "", found.language)
    words = [
        {"word": word.word.strip(), "start": word.start, "end": word.end}
        for segment in found.segments
        for word in segment.words or ()
    ]
    content |= {"task": task, "language": language, "duration": found.seconds, "usage": usage}
    return JSONResponse(content | ({"words": words} if with_words else {}))


def _check_fields(form: FormData) -> None:
    """What would be ignored is refused."""
    if unknown := sorted(form.keys() - FIELDS):
        raise Refused(400, f"The field {unknown[0]!r} is not supported.", unknown[0])
    for name in form.keys() - {GRANULARITIES}:
        if len(form.getlist(name)) > 1:
            raise Refused(400, f"The field {name!r} is given more than once.", name)
    if form.get("stream", "false") != "false":
        raise Refused(400, "Streaming is not supported: 'stream' must be false.", "stream")
    if unknown := sorted({*map(str, form.getlist(GRANULARITIES))} - {"segment", "word"}):
        message = f"{GRANULARITIES!r} must be segment or word, not {unknown[0]!r}."
        raise Refused(400, message, GRANULARITIES)
    if GRANULARITIES in form and form.get("response_format") != "verbose_json":
        message = f"{GRANULARITIES!r} needs the 'response_format' verbose_json."
        raise Refused(400, message, GRANULARITIES)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Refused(
            400, f"'temperature' must be a number, not {text!r}.", "temperature"
        ) from error


def _bounded(request: Request) -> Request:
    """The request, refused as soon as it turns out to be too large."""
    receive, left = request.receive, MAX_BYTES

    async def receive_some() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise Refused(413, f"A request has at most {MAX_BYTES} bytes.", "file")
        return message

    return Request(request.scope, receive_some)


async def _disconnected(request: Request) -> None:
    """Returns when the client of a request that was read to its end has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"  # noqa: PLR2004
    content = {
        "message": error.detail, "type": kind, "param": getattr(error, "field", None),
        "code": getattr(error, "code", None),
    }  # fmt: skip
    headers = dict(error.headers or {})
    if error.status_code == 503:  # noqa: PLR2004
        headers["Retry-After"] = str(RETRY_SECONDS)
    return JSONResponse({"error": content}, error.status_code, headers)


async def _failed(_: Request, error: Exception) -> Response:
    """Errors of options and audio are the client's."""
    is_theirs = isinstance(error, (AudioError, OptionError))
    field = error.field if isinstance(error, OptionError) else "file"
    found = Refused(400 if is_theirs else 500, str(error), field if is_theirs else None)
    return await _refused(_, found)


async def _unheard(_: Request, error: Exception) -> Response:
    """There is nobody to answer."""
    return Response(status_code=499)
