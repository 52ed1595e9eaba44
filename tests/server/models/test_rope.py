"""The rotary table against transformers' own frequencies."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from turret_server.errors import StartupError
from turret_server.models.rope import rope_table
from turret_server.models.rope_config import RopeConfig

# Parameters as published, in the shapes that long-context models have.
CASES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "factor": 4.0,
        "original_max_position_embeddings": 8192,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "attention_factor": 1.25,
    },
}


def _rope(kind: str, theta: float, parameters: dict[str, float]) -> RopeConfig:
    options = dict(parameters)
    original = int(options.pop("original_max_position_embeddings", 32768))
    return RopeConfig(type=kind, theta=theta, original_max_positions=original, **options)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("kind", CASES)
def test_table_is_that_of_transformers(kind, theta):
    parameters = {"rope_type": kind, "rope_theta": theta} | CASES[kind]
    theirs = LlamaConfig(head_dim=128, max_position_embeddings=32768, rope_parameters=parameters)
    inverse, attention_factor = ROPE_INIT_FUNCTIONS[kind](theirs)
    angle = torch.arange(32768).float()[:, None] * inverse
    expected = torch.cat([angle.cos(), angle.sin()], dim=-1) * attention_factor

    table = rope_table(_rope(kind, theta, CASES[kind]), 128, 32768)

    assert (table.shape, table.dtype) == ((32768, 128), torch.float32)
    # One unit in the last place of a frequency is 32768 * 2^-24 radians at the far end.
    torch.testing.assert_close(table, expected, atol=4e-3, rtol=0)
    torch.testing.assert_close(table[:64], expected[:64], atol=1e-5, rtol=0)


def test_yarn_with_borders_on_one_dimension_is_a_step():
    rope = RopeConfig(
        type="yarn",
        theta=1e4,
        factor=2.0,
        original_max_positions=4,
        beta_fast=1.0,
        beta_slow=1.0,
        truncate=False,
    )
    assert rope_table(rope, 16, 8).isfinite().all()


def test_dynamic_scaling_is_exact_within_and_refused_beyond_the_original_context():
    plain = RopeConfig(type="default", theta=1e4, original_max_positions=32)
    dynamic = RopeConfig(type="dynamic", theta=1e4, factor=4.0, original_max_positions=32)
    assert torch.equal(rope_table(dynamic, 16, 32), rope_table(plain, 16, 32))
    with pytest.raises(StartupError, match="--max-model-len to 32"):
        rope_table(dynamic, 16, 33)
