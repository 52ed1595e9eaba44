"""The loads of the comparison, the same for every server."""

from __future__ import annotations

from dataclasses import dataclass

# Longest prompt plus output of any load, in tokens: 1,200 common words are about 1,220 tokens.
MAX_MODEL_LEN = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One closed-loop load.

    Attributes:
        name: its name in files and tables.
        title: what it is, for a reader.
        num_resident: adapters the server holds.
        num_asked: adapters the requests name, in turn; 0 asks for the base.
        concurrency: workers.
        requests_per_worker: requests each worker sends in the measurement.
        prompt_words: words of each prompt.
        output_tokens: tokens each request generates.
        metric: number of the summary that decides.
    """

    name: str
    title: str
    num_resident: int
    num_asked: int
    concurrency: int
    requests_per_worker: int
    prompt_words: int = 60
    output_tokens: int = 64
    metric: str = "output_tokens_per_s"


LOADS = (
    Load(
        name="base-c1",
        title="base, 1 worker",
        num_resident=0,
        num_asked=0,
        concurrency=1,
        requests_per_worker=12,
    ),
    Load(
        name="base-c8",
        title="base, 8 workers",
        num_resident=0,
        num_asked=0,
        concurrency=8,
        requests_per_worker=6,
    ),
    Load(
        name="long-c4",
        title="1,200-word prompts, 4 workers (total tokens/s)",
        num_resident=0,
        num_asked=0,
        concurrency=4,
        requests_per_worker=3,
        prompt_words=1200,
        metric="total_tokens_per_s",
    ),
    Load(
        name="adapters8-c8",
        title="8 adapters, 8 workers",
        num_resident=8,
        num_asked=8,
        concurrency=8,
        requests_per_worker=6,
    ),
    Load(
        name="adapters16-c16",
        title="16 adapters, 16 workers",
        num_resident=16,
        num_asked=16,
        concurrency=16,
        requests_per_worker=3,
    ),
    Load(
        name="resident16-c8",
        title="base, 8 workers, 16 adapters resident",
        num_resident=16,
        num_asked=0,
        concurrency=8,
        requests_per_worker=6,
    ),
)
