import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from turret_server.errors import BadRequest
from turret_server.loadtest.arrivals import Arrivals
from turret_server.loadtest.config import LoadConfig, Target, Tenant
from turret_server.loadtest.lengths import parse_lengths
from turret_server.loadtest.popularity import parse_popularity
from turret_server.loadtest.workload import Workload

MakeConfig = Callable[..., LoadConfig]


def _bodies(config: LoadConfig) -> list[dict]:
    return [json.loads(spec.body) for spec in Workload(config).requests()]


def test_same_seed_gives_the_same_bytes(make_config: MakeConfig) -> None:
    config = make_config("a", "b", seed=3, prompt_lengths=parse_lengths("uniform:5:50"))
    first, second = ([s.body for s in Workload(config).requests()] for _ in range(2))
    assert first == second


def test_another_seed_gives_other_prompts(make_config: MakeConfig) -> None:
    one, two = (_bodies(make_config(seed=seed)) for seed in (1, 2))
    assert not {body["prompt"] for body in one} & {body["prompt"] for body in two}


def test_prompts_do_not_depend_on_models_or_arrivals(make_config: MakeConfig) -> None:
    plain = make_config()
    other = make_config("a", "b", arrivals=Arrivals(rate_per_s=3.0))
    assert [b["prompt"] for b in _bodies(plain)] == [b["prompt"] for b in _bodies(other)]


def test_warmup_visits_every_model_and_shares_no_prompt(make_config: MakeConfig) -> None:
    workload = Workload(make_config("a", "b", "c", num_warmup=6))
    warmup = workload.warmup()
    assert [spec.model for spec in warmup] == ["a", "b", "c"] * 2
    prompts = {json.loads(spec.body)["prompt"] for spec in workload.requests()}
    assert not prompts & {json.loads(spec.body)["prompt"] for spec in warmup}


def test_body_of_a_completion(make_config: MakeConfig) -> None:
    target = Target(model="a0", body={"lora": [{"id": 0, "scale": 1.0}]})
    config = make_config(targets=(target,), extra_body={"top_k": 1})
    body = _bodies(config)[0]
    assert len(body.pop("prompt").split()) == 60
    assert body == {
        "model": "a0",
        "max_tokens": 64,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_k": 1,
        "lora": [{"id": 0, "scale": 1.0}],
    }


def test_body_of_a_chat(make_config: MakeConfig) -> None:
    body = _bodies(make_config(endpoint="chat", stream=False, ignore_eos=False))[0]
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert not {"prompt", "stream", "stream_options", "ignore_eos"} & set(body)


def test_tenants_are_all_used(make_config: MakeConfig) -> None:
    tenants = (Tenant(name="x", api_key="1"), Tenant(name="y", api_key="2"))
    specs = Workload(make_config(tenants=tenants, num_requests=40)).requests()
    assert {spec.tenant.name for spec in specs} == {"x", "y"}


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    """A tokenizer that knows a few words and cuts everything else into letters."""
    letters = {chr(code): index for index, code in enumerate(range(ord("a"), ord("z") + 1))}
    words = {word: 26 + index for index, word in enumerate(["the", "of", "world", "house"])}
    tokenizer = Tokenizer(models.WordPiece({**letters, **words, "[UNK]": 90}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_prompts_in_tokens_are_exact(make_config: MakeConfig, tokenizer_json: Path) -> None:
    config = make_config(tokenizer_json=tokenizer_json, prompt_lengths=parse_lengths("33"))
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    assert {len(tokenizer.encode(body["prompt"]).ids) for body in _bodies(config)} == {33}


def test_a_missing_tokenizer_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="not loaded"):
        Workload(make_config(tokenizer_json=tmp_path / "none.json"))


def _trace(tmp_path: Path, *rows: dict) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_trace_is_replayed_at_its_own_times(make_config: MakeConfig, tmp_path: Path) -> None:
    trace = _trace(
        tmp_path,
        {"timestamp_s": 100.0, "prompt": "hello", "output_tokens": 3, "model": "b"},
        {"timestamp_s": 100.5, "prompt_length": 4, "session": "ignored"},
    )
    specs = list(Workload(make_config("a", "b", trace=trace, num_requests=None)).requests())
    bodies = [json.loads(spec.body) for spec in specs]
    assert [spec.due_s for spec in specs] == [0.0, 0.5]
    assert (bodies[0]["prompt"], bodies[0]["max_tokens"], bodies[0]["model"]) == ("hello", 3, "b")
    assert len(bodies[1]["prompt"].split()) == 4


def test_a_closed_loop_ignores_the_times_of_a_trace(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    trace = _trace(tmp_path, {"timestamp_s": 5.0})
    config = make_config(trace=trace, concurrency=1, num_requests=None)
    assert [spec.due_s for spec in Workload(config).requests()] == [None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "no time"}], "no timestamp_s"),
        ([{"timestamp_s": 2.0}, {"timestamp_s": 1.0}], "never decrease"),
        ([{"timestamp_s": 2.0}, {"prompt": "x"}], "on every line"),
        ([{"timestamp_s": 0.0, "model": "unknown"}], "'unknown'"),
        ([{"timestamp_s": 0.0, "tenant": "nobody"}], "'nobody'"),
        ([{"timestamp_s": 0.0, "output_tokens": 0}], "line 1"),
        ([{"timestamp_s": "soon"}], "line 1"),
        ([], "no rows"),
    ],
)
def test_unusable_traces_are_refused(
    make_config: MakeConfig, tmp_path: Path, rows: list[dict], message: str
) -> None:
    config = make_config("a", trace=_trace(tmp_path, *rows), num_requests=None)
    with pytest.raises(BadRequest, match=message):
        Workload(config)


def test_arrivals_set_the_times(make_config: MakeConfig) -> None:
    config = make_config(arrivals=Arrivals(rate_per_s=100.0), num_requests=None, duration_s=1.0)
    times = [spec.due_s or 0.0 for spec in islice(Workload(config).requests(), 50)]
    assert times == sorted(times)
    assert times[0] == 0.0


def test_popularity_reaches_the_requests(make_config: MakeConfig) -> None:
    config = make_config("a", "b", popularity=parse_popularity("round-robin"))
    assert [body["model"] for body in _bodies(config)] == ["a", "b"] * 3
