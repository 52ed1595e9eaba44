"""A fake engine with a deterministic language model, an app around it, and clients for it."""

from __future__ import annotations

import asyncio
import hashlib
import math
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from fastapi import FastAPI

from turret_adapters.derivation import Derivation
from turret_server.api.app import create_app
from turret_server.api.settings import ApiSettings
from turret_server.demo import demo_model
from turret_server.engine.messages import (
    AdapterInfo,
    EngineReady,
    EngineRequest,
    EngineStats,
    Profiled,
    TokenEvent,
    TokenLogprob,
)
from turret_server.errors import NotFound, TurretError, Unprocessable
from turret_server.pipeline.tokenizer import Tokenizer
from turret_server.tenancy.administration import Administration
from turret_server.tenancy.database import Database

CANDIDATES = 24


class FakeModel:
    """Log-probabilities that depend on all tokens before, and on nothing else."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def logprobs(self, prefix: Sequence[int]) -> dict[int, float]:
        """The likeliest tokens after a prefix, likeliest first; they sum to almost 1."""
        seed = hashlib.sha256(struct.pack(f"<{len(prefix)}i", *prefix)).digest() * 6
        tokens = dict.fromkeys(
            int.from_bytes(seed[4 * i : 4 * i + 4], "little") % self.vocab_size
            for i in range(CANDIDATES)
        )
        weights = [2.0 ** -(i + 1) * (1 + seed[i] / 512) for i in range(len(tokens))]
        total = sum(weights) * 1.001
        found = {t: math.log(w / total) for t, w in zip(tokens, weights, strict=True)}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def entry(self, prefix: Sequence[int], token: int, top: int) -> TokenLogprob:
        known = self.logprobs(prefix)
        logprob = known.get(token, -20.0 - token % 100 / 10)
        rank = list(known).index(token) + 1 if token in known else CANDIDATES + token % 100
        return TokenLogprob(token, logprob, rank, list(known.items())[:top])


@dataclass
class FakeEngine:
    """Follows a script, or the fake model; records what is asked of it.

    `script` gives the tokens of an answer; `delay_s` passes before each. After `fail_after` tokens
    of a request `failure` is raised. `gate`, when given, holds back all tokens until it is set.
    """

    tokenizer: Tokenizer
    script: Callable[[EngineRequest], Sequence[int]] | None = None
    delay_s: float = 0.0
    fail_after: int | None = None
    failure: Exception | None = None
    gate: asyncio.Event | None = None
    load_gate: asyncio.Event | None = None
    finish_reason: str = "length"
    stats: EngineStats = field(default_factory=EngineStats)
    requests: list[EngineRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    loaded: dict[str, str] = field(default_factory=dict)  # digest -> path
    derived: list[Derivation] = field(default_factory=list)
    held: list[str] = field(default_factory=list)  # digests
    kept: list[str] = field(default_factory=list)  # digests that a new engine would get back
    num_slots: int = 2
    load_error: TurretError | None = None
    restarts: int = 0
    num_virtual_tokens: int = 0  # of adapters that are loaded
    num_layers: dict[str, int] = field(default_factory=lambda: {"": 30})  # likewise
    unfit: dict[str, str] = field(default_factory=dict)  # likewise

    def __post_init__(self) -> None:
        self.model = FakeModel(self.tokenizer.vocab_size)
        self.ready: EngineReady | None = EngineReady(
            pid=1,
            max_model_len=2048,
            vocab_size=self.tokenizer.vocab_size,
            kv_blocks=128,
            kv_block_tokens=16,
            dtype="bfloat16",
            device="cpu",
            max_adapter_rank_rows=512,
            weights_digest="0123456789abcdef",
        )

    def text(self, text: str, *, end: bool = True) -> None:
        """Answer everything with a text, and the end of sequence."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        eos = list(self.tokenizer.eos_token_ids[:1]) if end else []
        self.script = lambda request: [*ids, *eos]

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent]:
        self.requests.append(request)
        done = False
        try:
            async for event in self._events(request):
                done = event.finish_reason is not None
                yield event
        finally:
            (self.finished if done else self.cancelled).append(request.id)

    async def _events(self, request: EngineRequest) -> AsyncGenerator[TokenEvent]:
        sampling, tokens = request.sampling, list(request.prompt)
        planned = list(self.script(request)) if self.script else None
        scored = None
        if (top := sampling.prompt_logprobs) is not None:
            scored = [None] + [
                self.model.entry(tokens[:i], tokens[i], top) for i in range(1, len(tokens))
            ]
        for step in range(sampling.max_tokens):
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(self.delay_s)
            if step == self.fail_after and self.failure is not None:
                raise self.failure
            token = planned[step] if planned else next(iter(self.model.logprobs(tokens)))
            entries = None
            if sampling.logprobs is not None:
                entries = [self.model.entry(tokens, token, sampling.logprobs)]
            tokens.append(token)
            stopped = token in sampling.stop_token_ids and step >= sampling.min_tokens
            last = step + 1 == sampling.max_tokens or (planned and step + 1 == len(planned))
            yield TokenEvent(
                id=request.id,
                tokens=[token],
                logprobs=entries,
                finish_reason="stop" if stopped else self.finish_reason if last else None,
                stop_token=token if stopped else None,
                cached_tokens=3 if step == 0 else 0,
                prompt_logprobs=scored if step == 0 else None,
                queued_s=0.001,
                prefill_s=0.002,
            )
            if stopped or last:
                return

    async def load_adapter(
        self,
        name: str,
        path: str,
        roots: Sequence[str] | None = None,
        derive: Derivation | None = None,
        *,
        digest: str | None = None,
        keep: bool = True,
    ) -> AdapterInfo:
        if self.load_gate is not None:
            await self.load_gate.wait()
        if self.load_error is not None:
            raise self.load_error
        if derive is not None:
            digest = derive.digest([source.path for source in derive.sources])
            self.loaded[digest] = str(derive)
            self.derived.append(derive)
            return AdapterInfo(
                digest=digest,
                kind="derived",
                rank=16,
                targets=["q_proj", "v_proj"],
                num_layers={"": 30},
                num_parameters=2000,
                num_bytes=4000,
                notes=["its rank drops 1.0%"],
            )
        file = Path(path) / "adapter_config.json"
        if not file.exists():
            raise NotFound(f"there is no adapter in {path!r}", "it has no adapter_config.json")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest not in (None, found):
            raise Unprocessable("it was not loaded", f"its digest is {found}, not {digest}")
        digest = found
        self.loaded[digest] = path
        if keep:
            self.kept.append(digest)
        return AdapterInfo(
            digest=digest,
            kind="lora",
            rank=8,
            targets=["q_proj", "v_proj"],
            num_layers=self.num_layers,
            unfit=self.unfit,
            sites={"q_proj": "0-29", "v_proj": "0-29"},
            num_parameters=1000,
            num_bytes=2000,
            base_model="demo",
            num_virtual_tokens=self.num_virtual_tokens,
        )

    async def hold_adapters(self, digests: Sequence[str]) -> None:
        assert set(digests) <= self.loaded.keys()
        if len(digests) > self.num_slots:
            raise Unprocessable("they cannot be pinned", f"there are {self.num_slots} slots")
        self.held = list(digests)

    async def profile(self, steps: int, wait_s: float, *, trace: bool = False) -> Profiled:
        return Profiled("profile-0", 0, 0.0, [])

    async def unload_adapter(self, digest: str) -> None:
        del self.loaded[digest]

    def set_ready(self, **changes: Any) -> None:
        """Change what the engine said of itself."""
        assert self.ready is not None
        self.ready = msgspec.structs.replace(self.ready, **changes)


@dataclass
class Answer:
    """What a raw ASGI call produced, as it was sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def events(self) -> list[Any]:
        """The JSON events of a stream, which must be framed exactly."""
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == ""
        assert blocks.pop() == "data: [DONE]"
        assert all(block.startswith(("data: ", ": ")) and "\n" not in block for block in blocks)
        return [msgspec.json.decode(b[6:]) for b in blocks if b.startswith("data: ")]


class RawClient:
    """Calls the app as a server would, so that a test can leave in the middle."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.on_part: Callable[[Answer], None] | None = None

    async def post(
        self,
        path: str,
        body: Any,
        headers: dict[str, str] | None = None,
        *,
        leave: asyncio.Event | None = None,
        method: str = "POST",
    ) -> Answer:
        """Send a body (bytes go as they are); the client leaves when `leave` is set."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent = {"content-type": "application/json", **(headers or {})}
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "headers": [(k.lower().encode(), v.encode()) for k, v in sent.items()],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        answer, complete, asked = Answer(), asyncio.Event(), False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": data, "more_body": False}
            await (leave or complete).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
                return
            answer.parts.append(message.get("body", b""))
            if self.on_part is not None:
                self.on_part(answer)
            if not message.get("more_body", False):
                complete.set()

        await self.app(scope, receive, send)
        return answer

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return await self.post(path, b"", headers, method="GET")

    async def chat(self, content: str = "Hi", **fields: Any) -> Answer:
        """One user message."""
        messages = [{"role": "user", "content": content}]
        return await self.post("/v1/chat/completions", {"messages": messages, **fields})

    async def complete(self, prompt: Any = "Hi", **fields: Any) -> Answer:
        return await self.post("/v1/completions", {"prompt": prompt, **fields})


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(demo_model(progress=False))


@pytest.fixture
def engine(tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture
def settings(tmp_path: Path) -> ApiSettings:
    root = tmp_path / "adapters"
    for name in ("sql", "json", "dates"):
        (root / name).mkdir(parents=True)
        (root / name / "adapter_config.json").write_text(f'{{"name": "{name}"}}')
    return ApiSettings(
        base_names=("demo", "smollm2"), model_root="/models/demo", adapter_roots=(root,)
    )


@pytest.fixture
def make_app(
    engine: FakeEngine, tokenizer: Tokenizer, settings: ApiSettings
) -> Callable[..., FastAPI]:
    """Build an app with changed settings, and what of `create_app` is no setting."""
    parts = ("auxiliaries", "scorers", "tracing")

    def make(**changes: Any) -> FastAPI:
        given = {name: changes.pop(name) for name in parts if name in changes}
        return create_app(engine, tokenizer, replace(settings, **changes), **given)

    return make


@pytest.fixture
def app(make_app: Callable[..., FastAPI]) -> FastAPI:
    return make_app()


@pytest.fixture
def client(app: FastAPI) -> RawClient:
    return RawClient(app)


@pytest.fixture
def make_client(make_app: Callable[..., FastAPI]) -> Callable[..., RawClient]:
    """A client of an app with changed settings."""
    return lambda **changes: RawClient(make_app(**changes))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """One of tenants, in a file."""
    database = Database(str(tmp_path / "turret.db"))
    yield database
    database.close()


@pytest.fixture
def admin(database: Database) -> Administration:
    return Administration(database, "test")


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """An ordinary HTTP client; responses arrive whole."""
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
