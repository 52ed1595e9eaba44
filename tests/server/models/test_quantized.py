"""A quantised base with adapters on top, against PEFT on the dequantised weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, PreTrainedModel

from turret_adapters.banks.device import DeviceBanks
from turret_adapters.files import AdapterFiles
from turret_adapters.kinds.lora import KIND
from turret_adapters.plan import RowUse, StepPlan
from turret_adapters.sharding import Shard
from turret_adapters.spec import LINEARS, Module, Site
from turret_kernels import native
from turret_kernels.paged_attention import AttentionMetadata
from turret_kernels.quantized import METHODS, Method
from turret_server.engine.runner import Runner
from turret_server.errors import StartupError
from turret_server.models.batch import Batch
from turret_server.models.config import DecoderConfig
from turret_server.models.decoder import Decoder
from turret_server.models.weights import check_quantization, load_weights

CPU, BF16 = torch.device("cpu"), torch.bfloat16
ADAPTERS = [
    {"r": 8, "target_modules": "all-linear"},
    {"r": 4, "target_modules": ["q_proj", "k_proj", "down_proj"], "use_dora": True},
]
BASE = len(ADAPTERS)
MODELS = [0, BASE, 1, 0, 1, BASE]  # of each sequence
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 8}


def load(folder: Path, quantization: Method | None, dtype=torch.float32) -> Decoder:
    return Decoder.load(folder, dtype, CPU, max_model_len=64, quantization=quantization)


def dequantised(model: PreTrainedModel, decoder: Decoder) -> PreTrainedModel:
    """The model in transformers with what the decoder serves."""
    model = copy.deepcopy(model)
    for layer, block in enumerate(model.model.layers):
        for module in LINEARS:
            parent = block.mlp if hasattr(block.mlp, module) else block.self_attn
            getattr(parent, module).weight.data.copy_(decoder.weight(Site(layer, module)))
    return model


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_a_mixed_batch_equals_peft_on_the_dequantised_base(
    save_tiny, tmp_path, ragged_logits, method
):
    folder, model = save_tiny(LlamaConfig, attention_bias=True, **SIZES)
    decoder = load(folder, method)
    reference = dequantised(model, decoder)
    banks = DeviceBanks(decoder.shape, len(ADAPTERS), 64, CPU, torch.float32, decoder.bias)
    models = []
    for slot, options in enumerate(ADAPTERS):
        torch.manual_seed(slot)
        config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
        adapted = get_peft_model(copy.deepcopy(reference), config).eval()
        adapted.save_pretrained(tmp_path / str(slot))
        with AdapterFiles.open(tmp_path / str(slot)) as files:
            assert banks.put(slot, KIND.compile(files, decoder.shape).components)
        models.append(PeftModel.from_pretrained(copy.deepcopy(reference), tmp_path / str(slot)))
    models.append(reference)

    def planner(spans, logit_rows):
        uses = [
            RowUse(first, count, (MODELS[i],), (1.0,))
            for i, first, count in spans
            if MODELS[i] != BASE
        ]
        return StepPlan(banks, uses, logit_rows)

    generator = torch.Generator().manual_seed(1)
    sequences = [
        torch.randint(128, (5 + 4 * i,), generator=generator).tolist() for i in range(len(MODELS))
    ]
    results = ragged_logits(decoder, sequences, planner)
    for number, sequence, logits in zip(MODELS, sequences, results, strict=True):
        tokens = torch.tensor([sequence])
        with torch.inference_mode():
            expected, plain = models[number].eval()(tokens).logits[0], model(tokens).logits[0]
        # Both compute in float32, with sums in another order; and rounding shows in the logits.
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
        assert (logits - plain).abs().max() > 0.02


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_only_the_linears_of_the_layers_are_quantised(save_tiny, method):
    folder, model = save_tiny(LlamaConfig, **SIZES)
    weights = load(folder, method).weights
    assert torch.equal(weights.embed, model.model.embed_tokens.weight)
    assert weights.head.method is None
    layer = weights.layers[1]
    assert {w.method for w in (layer.qkv, layer.o, layer.gate_up, layer.down)} == {method}


def test_every_quantisation_is_another_model(save_tiny):
    folder, _ = save_tiny(LlamaConfig, **SIZES)
    digests = [load(folder, method).weights.digest for method in (None, "int8", "int4", "int8")]
    assert digests[1] == digests[3]
    assert len(set(digests)) == 3


def test_the_weight_that_adapters_see_is_the_rounded_one(save_tiny):
    folder, model = save_tiny(LlamaConfig, **SIZES)
    decoder = load(folder, "int8", BF16)
    trained = model.model.layers[1].mlp.up_proj.weight.bfloat16().float()
    up = decoder.weight(Site(1, Module.UP))
    assert decoder.shape.is_quantized
    assert up.shape == trained.shape
    step = trained.abs().amax(1, keepdim=True) / 127
    # Half a step of the row; the step itself is rounded to bf16.
    assert 0 < ((up - trained).abs() / step).max() < 0.51


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_steps_are_recorded_where_our_kernels_multiply(save_tiny, monkeypatch, method):
    folder, _ = save_tiny(LlamaConfig, **SIZES, head_dim=32)
    decoder = load(folder, method, BF16)
    kv = decoder.allocate_kv(2, 32)
    runner = Runner(decoder, kv, 4)
    batch = Batch(
        token_ids=torch.tensor([5, 17]),
        positions=torch.tensor([0, 0]),
        slots=torch.tensor([0, 32]),
        attention=AttentionMetadata(
            query_start=torch.arange(3, dtype=torch.int32),
            context_len=torch.ones(2, dtype=torch.int32),
            block_table=torch.tensor([[0], [1]], dtype=torch.int32),
        ),
        logit_rows=None,
    )
    expected = decoder.forward(batch, kv).clone()
    assert torch.equal(runner.forward(batch), expected)
    replays = method == "int8" and native.lib is not None
    if replays:
        monkeypatch.delattr(Decoder, "run")
    assert torch.equal(runner.forward(batch), expected)


def test_a_linear_that_does_not_fit_is_named(save_tiny):
    folder, _ = save_tiny(LlamaConfig, **SIZES | {"intermediate_size": 96})
    with pytest.raises(StartupError, match="down_proj") as refused:
        load(folder, "int4")
    assert "int4 needs a multiple of 64 inputs, and it has 96" in refused.value.why
    assert "another --quantization" in refused.value.fix


@pytest.mark.parametrize("method", METHODS)
def test_shards_are_the_parts_of_the_whole(save_tiny, method):
    """Bit for bit: every scale is that of the whole weight, however many processes share it."""
    folder, _ = save_tiny(LlamaConfig, attention_bias=True, **SIZES | {"intermediate_size": 256})
    config = DecoderConfig.from_folder(folder)

    def decoder(shard: Shard) -> Decoder:
        weights = load_weights(folder, config, BF16, CPU, shard=shard, quantization=method)
        return Decoder(config.split(shard.world), weights, 64, str(folder))

    whole, halves = decoder(Shard()), [decoder(Shard(rank, 2)) for rank in range(2)]
    for site in (Site(1, module) for module in LINEARS):
        along = 1 if site.module in (Module.O, Module.DOWN) else 0
        parts = torch.cat([half.weight(site) for half in halves], along)
        assert torch.equal(parts, whole.weight(site)), site
    assert {half.weights.digest for half in halves} == {whole.weights.digest}


def test_a_shard_that_does_not_fit_is_named(save_tiny):
    folder, _ = save_tiny(LlamaConfig, **SIZES)
    config = DecoderConfig.from_folder(folder)
    check_quantization(folder, config, "int4")
    with pytest.raises(StartupError, match="down_proj") as refused:
        check_quantization(folder, config, "int4", world=2)
    assert "what each of 2 processes has" in refused.value.why
    assert "int4 needs a multiple of 64 inputs, and it has 96" in refused.value.why
    assert "--tensor-parallel" in refused.value.fix
