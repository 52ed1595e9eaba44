from collections.abc import Callable
from pathlib import Path

import pytest

from turret_server.errors import BadRequest
from turret_server.loadtest import flags
from turret_server.loadtest.arrivals import Arrivals
from turret_server.loadtest.config import LoadConfig
from turret_server.loadtest.environment import redacted
from turret_server.loadtest.goodput import parse_objective


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"url": "localhost:8000"}, "HTTP address"),
        ({"concurrency": 1, "arrivals": Arrivals(rate_per_s=1.0)}, "both given"),
        ({"concurrency": None}, "Nothing drives"),
        ({"num_requests": None}, "no end"),
        ({"concurrency": 0}, "--concurrency"),
        ({"num_requests": 0}, "--num-requests"),
        ({"duration_s": 0.0}, "--duration"),
        ({"timeout_s": float("nan")}, "--timeout"),
        ({"num_warmup": -1}, "--warmup"),
        ({"targets": ()}, "--model"),
    ],
)
def test_configurations_that_describe_no_run_are_refused(
    make_config: Callable[..., LoadConfig], overrides: dict, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        make_config(**overrides).validate()


def test_a_model_named_twice_is_refused(make_config: Callable[..., LoadConfig]) -> None:
    with pytest.raises(BadRequest, match="each once"):
        make_config("a", "a").validate()


def test_bodies_go_to_all_models_or_to_one() -> None:
    targets, shared = flags.targets(["a", "b"], ['{"top_k": 1}', 'b={"lora": []}', '{"x": 2}'])
    assert shared == {"top_k": 1, "x": 2}
    assert [target.body for target in targets] == [{}, {"lora": []}]


@pytest.mark.parametrize("text", ["c={}", "[1]", "a=[1]", "a={", "nothing"])
def test_bodies_that_fit_no_model_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="--body"):
        flags.targets(["a"], [text])


def test_no_model_at_all_is_refused() -> None:
    with pytest.raises(BadRequest, match="No model"):
        flags.targets([], [])


def test_keys_become_tenants() -> None:
    tenants = flags.tenants(["k1"], ["alice=k2=="])
    assert [(tenant.name, tenant.api_key) for tenant in tenants] == [
        ("key-1", "k1"),
        ("alice", "k2=="),
    ]


def test_a_key_never_shows() -> None:
    with pytest.raises(BadRequest) as caught:
        flags.tenants([], ["secret-without-a-name"])
    assert "secret" not in str(caught.value)
    assert "k1" not in repr(flags.tenants(["k1"], []))
    argv = ["bench", "--api-key", "k1", "--tenant=alice=k2", "--rate", "3"]
    assert redacted(argv) == ["bench", "--api-key", "***", "--tenant=***", "--rate", "3"]


def test_commands_name_no_folder_of_the_machine() -> None:
    argv = [f"{Path.cwd()}/bench/soak/__main__.py", f"{Path.home()}/models/demo", "/data/x"]
    assert redacted(argv) == ["bench/soak/__main__.py", "~/models/demo", "/data/x"]


def test_tokens_need_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="needs a tokenizer"):
        flags.prompts(None, "60", None)
    assert flags.prompts(None, "60", tmp_path)[1] == tmp_path / "tokenizer.json"


@pytest.mark.parametrize("text", ["ttft", "ttft:0", "ttft:x", "speed:5", "", "ttft:inf"])
def test_objectives_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="not understood"):
        parse_objective(text)
