"""LoReFT beyond the contract: positions that depend on the prompt, the cache, and refusals."""

from __future__ import annotations

import json

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from tests.kinds.cases.loreft import hooked, write
from tests.kinds.lab import PROMPTS, assert_same, base_reference

from turret_adapters.errors import AdapterMalformed, AdapterUnsupported
from turret_adapters.inspect import describe
from turret_server.engine.messages import AdapterUse

HIDDEN = 64


@pytest.fixture
def lab(labs):
    return labs("llama")


@pytest.mark.parametrize("positions", ["f1+l1", "l3", "f4", "f7+l7", "f2+l30"])
def test_positions_of_every_prompt(lab, tmp_path, positions):
    tensors = write(tmp_path / "reft", HIDDEN, positions=positions)
    loaded = lab.load(tmp_path / "reft")
    use = AdapterUse(loaded.digest)
    prompts = [[9], [9, 8], [9, 8, 7], *PROMPTS]
    answers = lab.run([lab.ask(p, *uses) for p in prompts for uses in ((use,), ())])
    for prompt, edited, base in zip(prompts, answers[::2], answers[1::2], strict=True):
        assert_same(edited, hooked(lab.model(), tensors, positions, prompt=len(prompt)))
        assert_same(base, base_reference(lab.model()))
    lab.unload(loaded)


def test_a_longer_prompt_finds_no_edited_block(lab, tmp_path):
    """The edit of the last positions of one prompt must not leak into a longer one."""
    tensors = write(tmp_path / "reft", HIDDEN, positions="l9")
    loaded = lab.load(tmp_path / "reft")
    texts = [PROMPTS[2][:33], PROMPTS[2], PROMPTS[2][:33]]
    for prompt in texts:
        request = lab.ask(prompt, AdapterUse(loaded.digest))
        request = replace(request, sampling=replace(request.sampling, prompt_logprobs=None))
        (answer,) = lab.run([request])
        tokens = torch.tensor(prompt + answer.tokens)
        reference = hooked(lab.model(), tensors, "l9", prompt=len(prompt))
        logprobs = reference(tokens).log_softmax(-1)
        for i, entry in enumerate(answer.entries, len(prompt) - 1):
            assert abs(float(logprobs[i, entry.token]) - entry.logprob) < 5e-5
    lab.unload(loaded)


def test_two_of_them_read_the_same_state(lab, tmp_path):
    """A stack adds both changes of the state that the layer left; their order does not matter."""
    folders = [tmp_path / "a", tmp_path / "b"]
    write(folders[0], HIDDEN, positions="all")
    write(folders[1], HIDDEN, positions="all", std=0.1, layers=[1, 2])
    loaded = [lab.load(folder) for folder in folders]
    uses = [AdapterUse(x.digest, weight) for x, weight in zip(loaded, (0.5, 1.0), strict=True)]
    one, other = lab.run([lab.ask(PROMPTS[0], *uses), lab.ask(PROMPTS[0], *uses[::-1])])
    for a, b in zip(one.entries, other.entries, strict=True):
        assert a.token == b.token
        assert abs(a.logprob - b.logprob) < 5e-5
    model, tensors = lab.model(), [load_file(folder / "adapter.safetensors") for folder in folders]

    def both(layer):
        def after(module, args, h):
            change = torch.zeros_like(h)
            for one, weight in zip(tensors, (0.5, 1.0), strict=True):
                if f"layers.{layer}.bias" in one:
                    r = one[f"layers.{layer}.rotate_layer"]
                    w, b = one[f"layers.{layer}.weight"], one[f"layers.{layer}.bias"]
                    change += weight * (h @ w.T + b - h @ r) @ r.T
            return h + change

        return after

    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(both(index))
    assert_same(one, base_reference(model))
    for adapter in loaded:
        lab.unload(adapter)


def edit(folder, **fields):
    path = folder / "turret_adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "error", "why"),
    [
        ({"positions": "1"}, AdapterMalformed, "positions"),
        ({"positions": ""}, AdapterMalformed, "positions"),
        ({"positions": "+"}, AdapterMalformed, "positions"),
        ({"positions": "f1l1"}, AdapterMalformed, "positions"),
        ({"positions": "f1+"}, AdapterMalformed, "positions"),
        ({"positions": "f0"}, AdapterMalformed, "positions"),
        ({"positions": None}, AdapterMalformed, "positions"),
        ({"rank": 4}, AdapterUnsupported, "expected"),
        ({"rank": 0}, AdapterMalformed, "rank"),
        ({"rank": True}, AdapterMalformed, "rank"),
        ({"layers": []}, AdapterMalformed, "layers"),
        ({"layers": [0, 0]}, AdapterMalformed, "layers"),
        ({"layers": [0]}, AdapterUnsupported, "layers.2"),
        ({"layers": [0, 1, 2]}, AdapterMalformed, "layers.1"),
        ({"method": "noreft"}, AdapterUnsupported, "method"),
        ({"act_fn": "relu"}, AdapterUnsupported, "act_fn"),
        ({"version": 2}, AdapterUnsupported, "version"),
    ],
)
def test_settings(lab, tmp_path, fields, error, why):
    write(tmp_path / "reft", HIDDEN, positions="f1+l1")
    edit(tmp_path / "reft", **fields)
    with pytest.raises(error) as caught:
        lab.load(tmp_path / "reft")
    assert why in caught.value.why


def test_a_layer_that_the_base_lacks(lab, tmp_path):
    write(tmp_path / "reft", HIDDEN, positions="l1", layers=[3])
    with pytest.raises(AdapterUnsupported, match="layer 3"):
        lab.load(tmp_path / "reft")


def test_inspection_needs_no_base(tmp_path):
    write(tmp_path / "reft", HIDDEN, positions="l1")
    report = describe(tmp_path / "reft")
    assert report["refusal"] is None
    assert report["modules"]["block"] == {"ranks": [3], "layers": [0, 2]}


def test_half_precision_is_read(lab, tmp_path):
    write(tmp_path / "reft", HIDDEN, positions="all")
    path = tmp_path / "reft" / "adapter.safetensors"
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(path).items()}
    save_file(tensors, path)
    loaded = lab.load(tmp_path / "reft")
    (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest))])
    wide = {key: tensor.float() for key, tensor in tensors.items()}
    assert_same(answer, hooked(lab.model(), wide, "all"))
    lab.unload(loaded)
