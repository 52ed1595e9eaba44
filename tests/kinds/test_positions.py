"""Adapters that act on some positions only: every row computed, every block shared exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from msgspec.structs import replace as changed
from peft import LoraConfig, PromptTuningConfig
from safetensors.torch import load_file
from tests.kinds.case import peft_case
from tests.kinds.lab import PROMPTS, assert_same

from turret_adapters import loading
from turret_adapters.positions import Positions
from turret_server.engine.messages import AdapterUse

RULES = {
    "invoked": Positions(invocation=(42, 8)),
    "never": Positions(invocation=(5, 5, 5)),
    "ends": Positions(first=2, last=3),
    "generating": Positions(generating=True),
    "everywhere": None,
}
MORE = [
    [42, 8, 1, 42, 8, 5, 6, 7],  # invoked twice: the last one counts
    [*range(60, 95), 42, 8, 3, 4],  # in the second block
]
EVERY = PROMPTS + MORE


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.fixture
def lora(lab, tmp_path, monkeypatch):
    """Load one LoRA under a rule; its factors."""
    made = []

    def load(rule, seed=0):
        folder = tmp_path / f"{rule}-{seed}"
        targets = ["q_proj", "v_proj", "down_proj"]
        # Another alpha for another rule: the digest is of the files, the rule is not in them.
        alpha = 8 + list(RULES).index(rule) / 8 + seed
        peft_case(
            "", "", lambda: LoraConfig(r=4, target_modules=targets, lora_alpha=alpha), std=0.1
        ).make(folder, lab.model())
        tensors = load_file(folder / "adapter_model.safetensors")
        detect = loading.detect

        def with_rule(files):
            kind = detect(files)
            return replace(
                kind,
                compile=lambda *at: replace(kind.compile(*at), positions=RULES[rule]),
            )

        with monkeypatch.context() as patch:
            patch.setattr(loading, "detect", with_rule)
            loaded = lab.load(folder)
        assert loaded.positions == RULES[rule]
        made.append(loaded)
        return loaded, Branch(tensors, alpha / 4, RULES[rule])

    yield load
    for loaded in made:
        lab.unload(loaded)


class Branch:
    """A LoRA in transformers, in rows of a mask."""

    def __init__(self, tensors, scale, rule):
        self.tensors, self.scale, self.rule = tensors, scale, rule

    def attach(self, model, prompt, virtual=0):
        def hook(name):
            a = self.tensors[f"base_model.model.{name}.lora_A.weight"]
            b = self.tensors[f"base_model.model.{name}.lora_B.weight"]

            def add(module, inputs, output):
                at = torch.arange(inputs[0].shape[1]) - virtual
                spans = [(-virtual, 1 << 40)] if self.rule is None else self.rule.spans(prompt)
                mask = sum(((at >= s) & (at < e)).float() for s, e in spans) + torch.zeros(len(at))
                return output + mask[:, None] * self.scale * (inputs[0] @ a.T @ b.T)

            return add

        for name, module in model.named_modules():
            if f"base_model.model.{name}.lora_A.weight" in self.tensors:
                module.register_forward_hook(hook(name))


def reference(lab, prompt, *branches, soft=None):
    """What the request computes; `soft` [m, hidden] stands before its prompt."""
    model = lab.model()
    for branch in branches:
        branch.attach(model, prompt, 0 if soft is None else len(soft))

    @torch.no_grad()
    def logits(tokens):
        embedded = model.get_input_embeddings()(tokens)
        if soft is not None:
            embedded = torch.cat([soft, embedded])
        return model(inputs_embeds=embedded[None]).logits[0, -len(tokens) :]

    return logits


@pytest.mark.parametrize("rule", RULES)
def test_it_acts_in_its_rows_alone(lab, lora, rule):
    loaded, branch = lora(rule)
    requests = [lab.ask(p, *use) for p in EVERY for use in ((AdapterUse(loaded.digest),), ())]
    answers = lab.run(requests)
    for prompt, adapted, base in zip(EVERY, answers[::2], answers[1::2], strict=True):
        assert_same(adapted, reference(lab, prompt, branch))
        assert_same(base, reference(lab, prompt))


def test_rules_and_a_soft_prompt_stack(lab, lora, tmp_path):
    made = [lora("invoked"), lora("ends", 1), lora("everywhere", 2)]
    peft_case(
        "", "", lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=29)
    ).make(tmp_path / "soft", lab.model())
    soft = load_file(tmp_path / "soft" / "adapter_model.safetensors")["prompt_embeddings"]
    virtual = lab.load(tmp_path / "soft")
    uses = [AdapterUse(loaded.digest) for loaded, _ in made]
    branches = [branch for _, branch in made]
    stack = uses[0], AdapterUse(virtual.digest), *uses[1:]
    requests = [lab.ask(p, *use) for p in EVERY for use in (stack, uses)]
    answers = lab.run(requests)
    for prompt, stacked, plain in zip(EVERY, answers[::2], answers[1::2], strict=True):
        assert_same(stacked, reference(lab, prompt, *branches, soft=soft))
        assert_same(plain, reference(lab, prompt, *branches))
    lab.unload(virtual)


@pytest.mark.parametrize("rule", ["invoked", "ends", "generating"])
@pytest.mark.parametrize("first", ["adapted", "base"])
def test_blocks_are_shared_and_never_aliased(lab, lora, rule, first):
    """Prompts that agree in their first 37 tokens, one after the other, through the cache."""
    loaded, branch = lora(rule)
    use = (AdapterUse(loaded.digest),)
    prompts = [[*MORE[1][:37], *tail] for tail in ([3, 4], [9] * 31, [9] * 35, [3, 4, 42, 8])]
    order = [use, ()] if first == "adapted" else [(), use]
    found = []
    for adapters in order * 2:
        for prompt in prompts:
            request = lab.ask(prompt, *adapters)
            sampling = changed(request.sampling, prompt_logprobs=None)
            events = []
            assert lab.engine.submit(changed(request, sampling=sampling)) is None
            while not lab.engine.idle:
                events += lab.engine.step()
            expected = reference(lab, prompt, *([branch] if adapters else []))
            tokens, logprobs = list(prompt), []
            for event in events:
                tokens += event.tokens
                logprobs += event.logprobs
            wanted = expected(torch.tensor(tokens)).log_softmax(-1)
            for i, entry in enumerate(logprobs):
                row = wanted[len(prompt) - 1 + i]
                assert abs(float(row[entry.token]) - entry.logprob) < 5e-5
            found.append(events[0].cached_tokens)
    # The second round of everything finds all it left, however the two differ.
    assert all(found[8:])
