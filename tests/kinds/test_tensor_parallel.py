"""Two processes that share a model compute what one does, whatever adapters act."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peft import LoraConfig
from tests.kinds.case import Case, peft_case
from tests.kinds.lab import CASES, PROMPTS, Lab, assert_same

from turret_adapters.errors import AdapterUnsupported
from turret_server.engine.messages import AdapterUse

REFUSED = {
    "road-1-32": "turns groups of 32 features",  # k is as wide as one of them
    "loramoe": "a mixture's gate",  # at down
}
BY_NAME = {case.name: case for case in CASES}
# The last case of every kind, on its first base; one base after another.
SPLIT = sorted(
    {case.kind: (case.bases[0], case) for case in CASES if case.name not in REFUSED}.values(),
    key=lambda pair: pair[0],
)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def splits(labs) -> Iterator[Callable[[str], Lab]]:
    """A base in two processes, this one and another; asking for another base closes it."""
    opened: list[Lab] = []

    def get(name: str) -> Lab:
        if not opened or opened[0].name != name:
            while opened:
                opened.pop().close()
            sizes: dict[str, Any] = {"kv_cache_bytes": 8 << 20, "max_step_tokens": 24}
            opened.append(Lab(labs(name).folder, name, **sizes, tensor_parallel=2))
        return opened[0]

    yield get
    for lab in opened:
        lab.close()


@pytest.mark.parametrize(("base", "case"), SPLIT, ids=str)
def test_it_computes_what_its_library_computes(splits, base, case, tmp_path):
    split = splits(base)
    reference = case.make(tmp_path / "adapter", split.model())
    loaded = split.load(tmp_path / "adapter")
    for answer in split.run([split.ask(prompt, AdapterUse(loaded.digest)) for prompt in PROMPTS]):
        assert_same(answer, reference)
    split.unload(loaded)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_refused(splits, name, tmp_path):
    split = splits("llama")
    BY_NAME[name].make(tmp_path / "adapter", split.model())
    with pytest.raises(AdapterUnsupported, match=REFUSED[name]):
        split.load(tmp_path / "adapter")


def lora(std: float = 0.1) -> Case:
    config = LoraConfig(r=4, target_modules=LINEARS)
    return peft_case("lora", "lora", lambda: config, std=std)


def test_a_mixed_batch_is_that_of_one_process(splits, labs, tmp_path):
    """The base, three kinds, and a stack with weights by layer, all in one batch."""
    split, whole = splits("qwen"), labs("qwen")
    loaded = []
    for case in (lora(), BY_NAME["ia3"], BY_NAME["lofit-scaled"]):
        case.make(tmp_path / case.name, split.model())
        loaded.append(split.load(tmp_path / case.name))
        whole.load(tmp_path / case.name)
    low_rank, ia3, lofit = loaded
    by_site = {"q_proj": 0.5, "down_proj": (0.2, 1.5, 0.0)}
    recipes = [
        (),
        (AdapterUse(low_rank.digest),),
        (AdapterUse(ia3.digest),),
        (AdapterUse(lofit.digest, 0.7),),
        (
            AdapterUse(low_rank.digest, by_site),
            AdapterUse(lofit.digest),
            AdapterUse(ia3.digest, 0.5),
        ),
    ]
    requests = [split.ask(prompt, *recipe) for prompt in PROMPTS for recipe in recipes]
    for one, two in zip(whole.run(requests), split.run(requests), strict=True):
        assert two.tokens == one.tokens
        for left, right in zip(one.entries, two.entries, strict=True):
            # Sums of float32 in another order, at logits of about 10.
            assert right.logprob == pytest.approx(left.logprob, abs=2e-5)
    for adapter in loaded:
        split.unload(adapter)
        whole.unload(adapter)


def test_a_slot_is_filled_anew(splits, tmp_path):
    split = splits("qwen")
    for std in (0.1, 0.2, 0.3):
        folder = tmp_path / str(std)
        reference = lora(std).make(folder, split.model())
        loaded = split.load(folder)
        (answer,) = split.run([split.ask(PROMPTS[0], AdapterUse(loaded.digest))])
        assert_same(answer, reference)
        split.unload(loaded)
        assert loaded.digest not in split.engine.store.loaded()
