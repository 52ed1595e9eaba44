"""Send one request and time what comes back."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from turret_server.loadtest.record import Record
from turret_server.loadtest.sse import SseParser
from turret_server.loadtest.wire import Answer, decode_answer

if TYPE_CHECKING:
    from turret_server.loadtest.config import LoadConfig
    from turret_server.loadtest.workload import RequestSpec

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_DETAIL_CHARS = 300


class Client:
    """Sends the requests of one run, each over a connection of its own.

    Use as an async context manager. `send` never raises for what a server or a network does: every
    outcome is a `Record`.
    """

    def __init__(self, config: LoadConfig):
        self._url = config.url.rstrip("/") + _PATHS[config.endpoint]
        self._stream = config.stream
        self._timeout_s = config.timeout_s
        self._origin_s = time.perf_counter()
        self._headers: dict[str, dict[str, str]] = {}
        for tenant in config.tenants:
            headers = {"Content-Type": "application/json"}
            if tenant.api_key is not None:
                headers["Authorization"] = f"Bearer {tenant.api_key}"
            self._headers[tenant.name] = headers

    async def __aenter__(self) -> Client:
        # A connection for each request. Servers close idle or used ones without a word (uvicorn
        # after 5 s, llama.cpp's after a stream), and a request written onto such a connection
        # would count as an error of the server; sending it again could hide a real one. The
        # handshake is part of the time to first token: about 0.1 ms on one machine.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    def restart_clock(self) -> None:
        """Make now the zero of every time recorded from here on."""
        self._origin_s = time.perf_counter()

    def now_s(self) -> float:
        """Return seconds on the clock of the run."""
        return time.perf_counter() - self._origin_s

    async def send(self, spec: RequestSpec) -> Record:
        """Send one request, wait for its end, and return what was seen."""
        now_s = self.now_s()
        record = Record(
            index=spec.index,
            model=spec.model,
            tenant=spec.tenant.name,
            start_s=now_s if spec.due_s is None else spec.due_s,
            sent_s=now_s,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(spec, record)
        except TimeoutError:
            _fail(record, "timeout", f"no end within {self._timeout_s:g} s")
        except aiohttp.ClientConnectorError as error:
            _fail(record, "connect", str(error))
        except (aiohttp.ClientError, OSError) as error:
            _fail(record, "disconnect", f"{type(error).__name__}: {error}")
        except msgspec.MsgspecError as error:
            _fail(record, "malformed", str(error))
        record.end_s = self.now_s()
        return record

    async def _exchange(self, spec: RequestSpec, record: Record) -> None:
        async with self._session.post(
            self._url, data=spec.body, headers=self._headers[spec.tenant.name]
        ) as response:
            if response.status != 200:
                _fail(record, f"http_{response.status}", await response.text(errors="replace"))
            elif self._stream:
                await self._read_stream(response, record)
            else:
                _take(decode_answer(await response.read()), record)
        if record.error is None and record.num_output_tokens == 0:
            _fail(record, "empty", "the answer holds no output")

    async def _read_stream(self, response: aiohttp.ClientResponse, record: Record) -> None:
        parser = SseParser()
        last_s = 0.0
        ended = False
        async for chunk in response.content.iter_any():
            now_s = self.now_s()
            for data in parser.feed(chunk):
                if data == b"[DONE]":
                    ended = True
                    continue
                answer = decode_answer(data)
                ended = ended or any(choice.finish_reason for choice in answer.choices)
                if not _take(answer, record):
                    continue
                if record.first_s is None:
                    record.first_s = now_s
                else:
                    record.gaps_s.append(now_s - last_s)
                last_s = now_s
        if not ended and record.error is None:
            _fail(record, "truncated", "the stream ended without a finish reason or [DONE]")


def _take(answer: Answer, record: Record) -> bool:
    """Add an answer, or a chunk of one, to the record; tell whether it carried output."""
    if answer.error is not None:
        _fail(record, "stream_error", msgspec.json.encode(answer.error).decode())
    has_output = any(choice.has_output() for choice in answer.choices)
    record.num_events += has_output
    if answer.usage is not None:
        # Some servers repeat a running count in every chunk: the last one holds.
        record.has_usage = True
        record.num_prompt_tokens = answer.usage.prompt_tokens
        record.num_output_tokens = answer.usage.completion_tokens
    elif not record.has_usage:
        record.num_output_tokens = record.num_events
    return has_output


def _fail(record: Record, kind: str, detail: str) -> None:
    record.error = kind
    record.detail = detail[:_DETAIL_CHARS]
