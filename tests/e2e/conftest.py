"""A server with eight adapters for clients to talk to, and engines that tests step themselves."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from turret_adapters.store import AdapterStore
from turret_server.engine.core import Engine
from turret_server.engine.messages import AdapterUse, EngineRequest, Sampling, TokenLogprob
from turret_server.engine.settings import EngineSettings
from turret_server.pipeline.prompt import ChatPrompt
from turret_server.pipeline.tokenizer import Tokenizer

BASE = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def server(serve: Callable[..., Any], adapters: dict[str, Path]) -> Iterator[Any]:
    """The demo model with eight adapters; folders beside theirs may be loaded."""
    root = next(iter(adapters.values())).parent
    flags = [f"--adapter={name}={path}" for name, path in adapters.items()]
    with serve(*flags, f"--adapter-root={root}") as server:
        yield server


@pytest.fixture
async def client(server: Any) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's own client. It must not try again: every refusal shall be seen."""
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


@pytest.fixture
def ask(client: AsyncOpenAI) -> Callable[..., Any]:
    """Send one user message; greedy and short unless told otherwise."""

    def create(model: str, content: str, **options: Any) -> Any:
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": content}],
            **{"temperature": 0, "max_tokens": 16, **options},
        )

    return create


@pytest.fixture
async def http(server: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """For routes that OpenAI's client does not know."""
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as http:
        yield http


@pytest.fixture(scope="session")
def base() -> str:
    """The base model's name."""
    return BASE


@pytest.fixture(scope="session")
def tokenizer(demo_folder: Path) -> Tokenizer:
    return Tokenizer.load(demo_folder)


@pytest.fixture(scope="session")
def chat_ids(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """One user message as the prompt that the model gets."""
    prompt = ChatPrompt(tokenizer)
    return lambda text: prompt.render([{"role": "user", "content": text}])


@dataclass
class Answer:
    """What an engine gave one request."""

    tokens: list[int] = field(default_factory=list)
    entries: list[TokenLogprob] = field(default_factory=list)
    cached_tokens: int = 0

    @property
    def logprobs(self) -> list[float]:
        return [entry.logprob for entry in self.entries]


class SteppedEngine:
    """An engine in this process, with all adapters.

    Attributes:
        digests: name -> digest, None for the base.
    """

    def __init__(self, settings: EngineSettings, adapters: dict[str, Path]) -> None:
        self._wake = threading.Event()
        self.engine = Engine(settings, wake=self._wake.set)
        store: AdapterStore = self.engine.store
        self.digests = {name: store.load(path).result().digest for name, path in adapters.items()}

    def request(
        self, model: str, prompt: list[int], *, weight: Any = 1.0, **sampling: Any
    ) -> EngineRequest:
        """A request with log-probabilities; its id is the model's name, and a weight that is not 1.

        A table of weights is as the engine takes it.
        """
        digest = self.digests.get(model)
        return EngineRequest(
            id=model if weight == 1 else f"{model}:{weight}",
            prompt=prompt,
            sampling=Sampling(logprobs=2, **sampling),
            adapters=() if digest is None else (AdapterUse(digest, weight),),
        )

    def run(self, requests: Sequence[EngineRequest]) -> dict[str, Answer]:
        """Run requests together to their ends."""
        answers = {request.id: Answer() for request in requests}
        for request in requests:
            assert self.engine.submit(request) is None
        while not self.engine.idle:
            self._wake.clear()
            events = self.engine.step()
            if not events and not self.engine.scheduler.running:
                self._wake.wait(timeout=30)  # an adapter is on its way
            for event in events:
                assert event.error is None, event.error
                answer = answers[event.id]
                answer.tokens += event.tokens
                answer.entries += event.logprobs or []
                answer.cached_tokens += event.cached_tokens
        stats = self.engine.stats
        assert (stats.kv_blocks_used, self.engine.store.num_pins) == (0, 0)
        return answers

    def close(self) -> None:
        """Stop the loader's thread."""
        self.engine.store.close()


@pytest.fixture(scope="module")
def make_engine(demo_folder: Path, adapters: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Build an engine with changed settings."""
    made: list[SteppedEngine] = []

    def make(**changes: Any) -> SteppedEngine:
        settings = {"kv_cache_bytes": 128 << 20, **changes}
        made.append(SteppedEngine(EngineSettings(model=str(demo_folder), **settings), adapters))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
