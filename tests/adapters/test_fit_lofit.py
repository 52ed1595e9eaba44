"""LoFiT is fitted as its paper says, and what it writes is served as it was trained."""

from __future__ import annotations

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from turret_adapters.components import Offset
from turret_adapters.fit.examples import FitError, Row, batches, encode, read_examples, split
from turret_adapters.fit.lofit import LoFitSettings, fit_lofit
from turret_adapters.loading import read_adapter
from turret_adapters.spec import ModelShape, Module

VOCAB, LAYERS, HEADS, D = 32, 3, 4, 8
SETTINGS = LoFitSettings(
    heads=3, select_epochs=3, tune_epochs=12, tune_learning_rate=0.1, patience=12, seed=1
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HEADS * D,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    made = LlamaForCausalLM(config).eval()
    for name, parameter in made.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(0, 0.2)
    return made


def rows(count=80, answer=(9, 4)):
    rng = random.Random(2)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(2, 6))] for _ in range(count)]
    return [Row([*prompt, *answer], len(prompt)) for prompt in prompts]


@pytest.fixture(scope="module")
def fitted(model):
    seen = []
    return fit_lofit(model, rows(), SETTINGS, seen.append), seen


def test_the_held_out_loss_falls_step_by_step(fitted):
    losses = fitted[0].losses
    assert losses["select"] < losses["base"]
    assert losses["tune"] < losses["base"] - 1


def test_heads_are_distinct_and_as_many_as_asked(fitted):
    fit, _ = fitted
    assert fit.v.shape == (3, D)
    assert len(set(zip(fit.layers.tolist(), fit.heads.tolist(), strict=True))) == 3
    assert int(fit.layers.max()) < LAYERS
    assert int(fit.heads.max()) < HEADS


def test_progress_counts_both_stages(fitted):
    _, seen = fitted
    per_epoch = 9  # 72 of 80 rows in batches of 8
    for stage, epochs in (("select", 3), ("tune", 12)):
        steps = [at for at in seen if at.stage == stage]
        assert [at.step for at in steps] == list(range(1, epochs * per_epoch + 1))
        assert {at.total for at in steps} == {epochs * per_epoch}
        assert steps[0].held_out == pytest.approx(fitted[0].losses["base"])


def test_the_same_seed_gives_the_same_adapter(model, fitted):
    again = fit_lofit(model, rows(), SETTINGS)
    assert torch.equal(again.heads, fitted[0].heads)
    assert torch.equal(again.v, fitted[0].v)


def test_the_model_is_left_as_it_was(model, fitted):
    tokens = torch.arange(6)[None]
    fresh = LlamaForCausalLM(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens).logits, fresh(tokens).logits)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_is_saved_is_what_was_trained(model, fitted, tmp_path):
    fit, _ = fitted
    fit.save(tmp_path / "new", "tiny/llama")
    width = HEADS * D
    shape = ModelShape(LAYERS, {Module.O: (width, width)}, head_dim=D)
    _, program = read_adapter(tmp_path / "new", shape, torch.float32)
    assert program.base_model == "tiny/llama"
    assert {type(c) for c in program.components} == {Offset}
    vectors = {c.site.layer: c.vector for c in program.components}
    tokens = torch.arange(7)[None]
    with fit.applied(model):
        expected = model(tokens).logits
    for layer, vector in vectors.items():
        hook = lambda module, args, vector=vector: (args[0] + vector,)  # noqa: E731
        model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(hook)
    try:
        assert torch.allclose(model(tokens).logits, expected, atol=1e-6)
    finally:
        for layer in vectors:
            model.model.layers[layer].self_attn.o_proj._forward_pre_hooks.clear()
    assert (model(tokens).logits - expected).abs().max() > 0.1


def test_only_answers_carry_the_loss(model):
    from turret_adapters.fit.lofit import _Fit

    fit = _Fit(model, rows(), SETTINGS, lambda at: None)
    row = Row([3, 1, 4, 1, 5, 9], 4)
    loss, count = fit._loss([row, Row([7, 9], 1)])
    assert count == 3
    wanted = 0.0
    for ids, start in ((row.ids, 4), ([7, 9], 1)):
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1).detach()
        wanted -= sum(float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids)))
    assert float(loss) == pytest.approx(wanted, abs=1e-4)


def test_it_stops_when_the_held_out_loss_no_longer_falls(model):
    """Answers without a rule: what is learnt of some says nothing of the others."""
    rng = random.Random(4)
    noise = [Row([rng.randrange(VOCAB) for _ in range(6)], 3) for _ in range(24)]
    seen = []
    settings = LoFitSettings(
        heads=1.0, select_epochs=1, tune_epochs=60, tune_learning_rate=0.1, held_out=0.3, patience=2
    )
    fit = fit_lofit(model, noise, settings, seen.append)
    tuned = [at for at in seen if at.stage == "tune"]
    assert tuned[-1].step < tuned[-1].total
    assert fit.losses["tune"] <= min(at.held_out for at in tuned[4:])


@pytest.mark.parametrize("heads", [0, 13, 0.5, 0.001, 1.0, -0.1, 1.2])
def test_the_number_of_heads(model, heads):
    settings = LoFitSettings(heads=heads, select_epochs=1, tune_epochs=1)
    wanted = {0.5: 6, 0.001: 1, 1.0: 12}
    if heads in wanted:
        assert len(fit_lofit(model, rows(16), settings).v) == wanted[heads]
    else:
        with pytest.raises(FitError, match=f"heads is {heads}"):
            fit_lofit(model, rows(16), settings)


def test_one_example_is_too_few(model):
    with pytest.raises(FitError, match="there are 1 examples"):
        fit_lofit(model, rows(1))


def test_another_architecture_is_refused():
    with pytest.raises(FitError, match="self_attn"):
        fit_lofit(torch_model_without_layers(), rows(8))


def torch_model_without_layers():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=1, n_head=2))


def test_splits_share_nothing_and_lose_nothing():
    data = rows(50)
    train, held_out = split(data, 0.1, seed=3)
    assert (len(train), len(held_out)) == (45, 5)
    assert sorted(map(id, train + held_out)) == sorted(map(id, data))
    assert split(data, 0.1, seed=3) == (train, held_out)
    made = batches(data, 8, random.Random(1))
    assert sorted(id(row) for batch in made for row in batch) == sorted(map(id, data))


# ------------------------------------------------------------------ data


WORDS = ["[unk]", "<s>", "</s>", "user", "assistant", ":", "hi", "you", "yes", "no", "system"]
TEMPLATE = (
    "{% for m in messages %}<s> {{ m.role }} : {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant : {% endif %}"
)


@pytest.fixture
def tokenizer():
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


def words(row):
    return " ".join(WORDS[i] for i in row.ids[: row.start]), [
        WORDS[i] for i in row.ids[row.start :]
    ]


def write(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_both_forms_of_data(tokenizer, tmp_path):
    path = write(
        tmp_path / "data.jsonl",
        {"prompt": "hi you", "completion": "yes yes"},
        "",
        {"messages": [{"role": r, "content": c} for r, c in CONVERSATION]},
    )
    first, second = (encode(tokenizer, c) for c in read_examples(path))
    assert words(first) == ("<s> user : hi you </s> <s> assistant :", ["yes", "yes", "</s>"])
    asked = (
        "<s> system : you </s> <s> user : hi </s> <s> assistant : no </s> <s> user : you </s> "
        "<s> assistant :"
    )
    assert words(second) == (asked, ["yes", "</s>"])


CONVERSATION = [
    ("system", "you"),
    ("user", "hi"),
    ("assistant", "no"),
    ("user", "you"),
    ("assistant", "yes"),
]


def test_without_a_template_the_texts_are_joined(tokenizer):
    tokenizer.chat_template = None
    row = encode(tokenizer, [{"role": "user", "content": "hi"}, {"role": "a", "content": "no"}])
    assert words(row) == ("hi", ["no", "</s>"])


def test_a_template_that_writes_something_between_is_refused(tokenizer):
    tokenizer.chat_template = TEMPLATE.replace("assistant : {%", "assistant : you {%")
    with pytest.raises(FitError, match="right behind the question"):
        encode(
            tokenizer, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]
        )


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        {"prompt": "hi"},
        {"prompt": "hi", "completion": 3},
        {"messages": []},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": []}, {"role": "assistant", "content": "hi"}]},
        {"messages": ["hi", "you"]},
    ],
    ids=str,
)
def test_a_bad_line_is_named(tmp_path, line):
    path = write(tmp_path / "data.jsonl", {"prompt": "hi", "completion": "no"}, line)
    with pytest.raises(FitError, match="line 2 is no example"):
        read_examples(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FitError, match=r"nothing\.jsonl"):
        read_examples(tmp_path / "nothing.jsonl")
