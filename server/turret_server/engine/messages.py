"""What crosses the process boundary between API and engine (msgspec, no pickle).

The API process knows text, names and tenants; the engine knows token ids, adapter digests and
cache keys. Times are seconds, lengths are tokens. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from turret_adapters.derivation import Derivation
from turret_server import errors

# ---------------------------------------------------------------- requests: API -> engine


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Ranges are validated by the API, not here."""

    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    logit_bias: dict[int, float] = {}
    seed: int = 0  # 64 bits; the API draws one when the client names none
    max_tokens: int = 16  # >= 1
    min_tokens: int = 0  # stop_token_ids are banned until then
    stop_token_ids: tuple[int, ...] = ()  # end-of-sequence ids included unless ignore_eos
    logprobs: int | None = None  # n most likely beside the chosen token; 0 = the chosen alone
    prompt_logprobs: int | None = None
    grammar: str | None = None  # an llguidance grammar (serialised), validated by the API


class AdapterUse(msgspec.Struct, frozen=True):
    """One adapter of a recipe; its weight is a number, or by module one, or one per layer."""

    digest: str
    weight: float | dict[str, float | tuple[float, ...]] = 1.0


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """What decodes in lockstep with a request: a prompt and a recipe of its own."""

    prompt: list[int]
    adapters: tuple[AdapterUse, ...] = ()
    model: str = ""  # an auxiliary; else the main model


class Fusion(msgspec.Struct, frozen=True, kw_only=True):
    """How a request and further members become one distribution: see `turret_kernels.fusion`.

    The formulas are sums over terms, each a member with a weight and a temperature; a member that
    stands in several terms runs once.
    """

    members: tuple[Member, ...]  # beside the request itself, which is member 0
    terms: tuple[int, ...]  # the member of each
    weights: tuple[float, ...] = ()  # of the terms; not read with a limit
    temperatures: tuple[float, ...] = ()  # of the terms, 1 if empty
    mixture: bool = False  # of probabilities; otherwise of logits
    plausible: float = 0.0  # the first term's least share of its likeliest token's probability
    nucleus: float = 1.0  # the first term's likeliest tokens of this probability stay
    limit: float = 0.0  # the largest dynamic weight; 0: weights as given
    grid: bool = False  # dynamic weights by the published grid
    joint: bool = False  # dynamic weights of all experts at once
    trace: bool = False  # log-probabilities carry the weights of their tokens


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, tag="request"):
    """A request as the engine sees it: token ids and a recipe."""

    id: str
    prompt: list[int]
    sampling: Sampling
    adapters: tuple[AdapterUse, ...] = ()
    cache_namespace: str = ""  # tenant and salt: prefixes are shared within one namespace only
    cache_owner: str = ""  # tenant: its prefixes take its share of the cache
    fairness_key: str = ""  # tenant; requests of different keys take turns
    fairness_weight: float = 1.0  # its share beside other keys, above 0
    fairness_rows: int | None = None  # rows at which nothing more of the key starts
    lane: str = ""  # model; within a key, requests of different lanes take turns
    lane_weight: float = 1.0  # its share beside the key's other lanes, above 0
    deadline_s: float | None = None  # budget from arrival in the engine
    queue_s: float | None = None  # how long it may wait there to start
    fusion: Fusion | None = None
    model: str = ""  # of a member alone: see Member


class CancelRequest(msgspec.Struct, frozen=True, tag="cancel"):
    """The client is gone, or a stop string was found: free everything the request holds."""

    id: str


class LoadAdapter(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """Read, validate and compile an adapter; answer AdapterLoaded."""

    operation: str
    name: str  # for messages only: the engine identifies adapters by digest
    path: str  # the folder; empty for a derived adapter
    roots: Sequence[str] | None = None  # what links lead to must lie below one; None allows all
    digest: str | None = None  # the only content that is accepted; None accepts any
    derive: Derivation | None = None  # instead of a folder: make it of others


class UnloadAdapter(msgspec.Struct, frozen=True, kw_only=True, tag="unload"):
    """Forget a digest as soon as no request uses it; answer OperationDone."""

    operation: str
    digest: str


class HoldAdapters(msgspec.Struct, frozen=True, kw_only=True, tag="hold"):
    """Keep exactly these digests on the device from now on; answer OperationDone."""

    operation: str
    digests: Sequence[str]


class ProfileSteps(msgspec.Struct, frozen=True, kw_only=True, tag="profile"):
    """Watch the next steps; answer Profiled."""

    operation: str
    steps: int
    wait_s: float  # for so many steps; an idle engine makes none
    trace: bool = False  # write every operation into a file, too


class InjectFault(msgspec.Struct, frozen=True, tag="fault"):
    """Test only (TURRET_FAULTS=1): `raise` in the step, `exit`, or `hang`."""

    kind: str


Inbound = EngineRequest | CancelRequest | ProfileSteps | InjectFault
# These have a socket and a thread of their own: a load begins and ends in the midst of a step.
Operation = LoadAdapter | UnloadAdapter | HoldAdapters


def operations_endpoint(endpoint: str) -> str:
    """Where an engine hears of operations, from where it hears of the rest."""
    return f"{endpoint}-operations"


# ---------------------------------------------------------------- events: engine -> API


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one token, with the `n` most likely (chosen token included if asked)."""

    token: int
    logprob: float
    rank: int  # 1 = most likely
    top: list[tuple[int, float]] = []
    weights: list[float] = []  # of the terms of a fusion that traces them


class TokenEvent(msgspec.Struct, kw_only=True, array_like=True):
    """What one step gave one request. The last event of a request has `finish_reason`."""

    id: str
    tokens: list[int] = []
    logprobs: list[TokenLogprob] | None = None  # one per token
    finish_reason: str | None = None  # stop | length | abort | deadline | error
    stop_token: int | None = None  # the stop_token_id that ended it (also the last of `tokens`)
    cached_tokens: int = 0  # prompt tokens found in the prefix cache; on the first event
    prompt_logprobs: list[TokenLogprob | None] | None = None  # None at position 0
    error: ErrorInfo | None = None
    queued_s: float = 0.0  # arrival to first scheduling; on the first event
    prefill_s: float = 0.0  # first scheduling to first token; on the first event


class ErrorInfo(msgspec.Struct, frozen=True):
    """An error of turret_server.errors, by class name."""

    kind: str
    what: str
    why: str = ""
    fix: str = ""

    def error(self) -> errors.TurretError:
        """The error itself."""
        kind = getattr(errors, self.kind, errors.TurretError)
        return kind(self.what, self.why, self.fix)


class StepEvents(msgspec.Struct, tag="step"):
    """All events of one engine step, in one message."""

    events: list[TokenEvent]


class AdapterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine learned of an adapter when it loaded it."""

    digest: str
    kind: str  # "lora"
    rank: int  # the largest
    targets: list[str]  # module names, e.g. ["q_proj", "v_proj"]
    num_layers: dict[str, int]  # of the models that it fits, by name; "" is the main one
    unfit: dict[str, str] = {}  # why it does not fit the other models
    sites: dict[str, str] = {}  # the layers of each, e.g. {"q_proj": "0-29"}; "" where none count
    num_parameters: int
    num_bytes: int  # in the served dtype
    base_model: str | None = None  # as the adapter's own config names it
    primitives: list[str] = []  # what it compiled to, e.g. ["LowRank", "Offset"]
    num_virtual_tokens: int = 0  # positions that it puts before the prompt
    notes: list[str] = []  # what a user may want to know


class AdapterLoaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """Answer to LoadAdapter."""

    operation: str
    info: AdapterInfo


class OperationDone(msgspec.Struct, frozen=True, tag="done"):
    """Answer to UnloadAdapter and HoldAdapters."""

    operation: str


class OperationFailed(msgspec.Struct, frozen=True, tag="failed"):
    """An operation was refused; nothing of it remains."""

    operation: str
    error: ErrorInfo


class OperationTime(msgspec.Struct, frozen=True, array_like=True):
    """What was spent in one kind of operation, on the device where there is one."""

    name: str
    calls: int
    own_s: float  # without those that it called
    total_s: float


class Profiled(msgspec.Struct, frozen=True, tag="profiled"):
    """Answer to ProfileSteps."""

    operation: str
    steps: int  # that were watched; fewer than asked for, if they did not come in time
    seconds: float
    operations: list[OperationTime]  # those that took most first
    trace: str = ""  # path of a Chrome trace, which the reader removes; "" without one
    problem: str = ""  # why there is no profile, if so


class AuxiliaryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An auxiliary model as the engine loaded it."""

    max_model_len: int
    kv_blocks: int


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Sent once, when the engine has loaded the base model."""

    pid: int
    max_model_len: int
    vocab_size: int
    kv_blocks: int
    kv_block_tokens: int
    dtype: str
    device: str
    max_adapter_rank_rows: int
    weights_digest: str
    quantization: str = "none"  # of the base's linears
    auxiliaries: dict[str, AuxiliaryInfo] = {}


REFUSED = 78  # exit code of an engine that has sent EngineRefused (EX_CONFIG)


class EngineRefused(msgspec.Struct, frozen=True, tag="refused"):
    """Sent instead of EngineReady: the settings or the model cannot be served; the process ends."""

    error: ErrorInfo


STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """Gauges and counters since the engine's start, sent a few times a second while it works."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    prefix_queries: int = 0  # prompt tokens looked up
    prefix_hits: int = 0  # of them found
    preemptions: int = 0
    steps: int = 0
    step_tokens: int = 0  # tokens of all steps
    step_sizes: list[int] = []  # steps of at most STEP_TOKENS tokens each, and of more
    step_seconds: float = 0.0
    resident_adapters: list[str] = []  # digests on the device
    host_adapters: list[str] = []  # digests compiled on the host
    running_adapters: list[str] = []  # digests used by running requests
    waiting_adapters: list[str] = []  # digests that waiting requests need
    host_adapter_bytes: int = 0


Outbound = StepEvents | EngineReady | EngineRefused | EngineStats | Profiled
OperationResult = AdapterLoaded | OperationDone | OperationFailed
