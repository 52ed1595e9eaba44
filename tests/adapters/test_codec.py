"""Ternary tensors as bytes: every tensor comes back, and bytes nobody wrote are refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turret_adapters.compress.codec import (
    BITMAP,
    RICE,
    CodecError,
    Packed,
    decode,
    encode,
    rice_bits,
)


def ternary(size, density, seed=0):
    generator = np.random.default_rng(seed)
    return np.where(generator.random(size) < density, generator.choice([-1, 1], size), 0).astype(
        np.int8
    )


@pytest.mark.parametrize("density", [0, 0.001, 0.05, 0.2, 0.5, 0.9, 1])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 4097, 100_000])
def test_what_is_encoded_comes_back(size, density):
    values = ternary(size, density)
    packed = encode(values)
    assert packed.nnz == np.count_nonzero(values)
    np.testing.assert_array_equal(decode(packed, size), values)


@given(st.lists(st.sampled_from([0, 0, 0, -1, 1]), max_size=300))
def test_every_short_tensor_comes_back(values):
    array = np.array(values, np.int8)
    np.testing.assert_array_equal(decode(encode(array), len(values)), array)


def test_nothing_is_encoded_as_nothing():
    packed = encode(np.zeros(0, np.int8))
    assert packed.num_bytes == 0
    assert decode(packed, 0).size == 0


@pytest.mark.parametrize(("density", "bits"), [(0.05, 0.342), (0.1, 0.573), (0.2, 0.938)])
def test_sizes_are_near_the_entropy(density, bits):
    """Bits per value of the published formula; a million values vary by less than 2 %."""
    packed = encode(ternary(1_000_000, density))
    assert packed.coder == RICE
    assert packed.num_bytes * 8 / 1_000_000 == pytest.approx(bits, rel=0.02)


def test_dense_tensors_take_the_bitmap():
    packed = encode(ternary(10_000, 0.8))
    assert packed.coder == BITMAP
    assert packed.places.size == 1250


@pytest.mark.parametrize(("density", "bits"), [(0.5, 0), (0.2, 2), (0.05, 4), (0, 0), (1, 0)])
def test_rice_bits(density, bits):
    assert rice_bits(density) == bits


def changed(packed: Packed, **fields):
    return dataclasses.replace(packed, **fields)


SPARSE, DENSE = encode(ternary(1003, 0.1)), encode(ternary(1003, 0.8))


@pytest.mark.parametrize("packed", [SPARSE, DENSE], ids=["rice", "bitmap"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda p: {"nnz": p.nnz + 1},
        lambda p: {"nnz": p.nnz - 8},
        lambda p: {"nnz": 1 << 39},
        lambda p: {"nnz": -1},
        lambda p: {"rice_bits": p.rice_bits + 1},
        lambda p: {"rice_bits": 31},
        lambda p: {"coder": "other"},
        lambda p: {"places": p.places[:-1]},
        lambda p: {"places": np.append(p.places, np.uint8(0))},
        lambda p: {"places": np.append(p.places, np.uint8(1))},
        lambda p: {"places": np.zeros(0, np.uint8)},
        lambda p: {"signs": p.signs[:-1]},
        lambda p: {"signs": np.append(p.signs, np.uint8(0))},
        lambda p: {"signs": np.append(p.signs[:-1], np.uint8(255))},
    ],
)
def test_damage_is_refused(packed, damage):
    with pytest.raises(CodecError):
        decode(changed(packed, **damage(packed)), 1003)


@pytest.mark.parametrize("packed", [SPARSE, DENSE], ids=["rice", "bitmap"])
@pytest.mark.parametrize("size", [1, 900, 995, 1_000_000])
def test_another_size_is_refused(packed, size):
    if packed.coder == RICE and size == 1_000_000:
        return  # a sparser tensor: the file's own fingerprint tells
    with pytest.raises(CodecError):
        decode(packed, size)


@given(
    st.binary(max_size=40),
    st.binary(max_size=6),
    st.integers(-2, 60),
    st.integers(-1, 40),
    st.integers(0, 400),
    st.sampled_from([RICE, BITMAP]),
)
def test_noise_never_escapes(places, signs, nnz, bits, size, coder):
    """Random bytes either decode to a tensor that encodes to its nonzeros, or are refused."""
    packed = Packed(
        coder, nnz, bits, np.frombuffer(places, np.uint8), np.frombuffer(signs, np.uint8)
    )
    try:
        values = decode(packed, size)
    except CodecError:
        return
    assert values.shape == (size,)
    assert np.count_nonzero(values) == nnz
