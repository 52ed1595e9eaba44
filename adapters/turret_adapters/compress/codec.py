"""Ternary tensors as bytes: where the nonzeros are (bitmap or Golomb-Rice), and their signs.

Both coders are vectorised both ways. The Rice coder writes the unary quotients of all gaps first
and their remainders after them: as many bits as interleaved, but no code word depends on where the
one before it ended. All bits are little-endian in their bytes, and padding is zero, so a tensor has
one encoding.

Position bits per nonzero at density k: 1/k for the bitmap, `b + 1/(1 - (1 - k)^(2^b))` for Rice
(Sattler et al., 2019, eq. 10 and 11); one more bit for the sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BITMAP, RICE = "bitmap", "rice"
CODERS = (BITMAP, RICE)
MAX_RICE_BITS = 30

Bytes = NDArray[np.uint8]


class CodecError(ValueError):
    """Bytes that no encoder wrote; says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An encoded tensor.

    Attributes:
        coder: "bitmap" or "rice".
        nnz: number of nonzeros.
        rice_bits: bits of a remainder; 0 for the bitmap.
        places: where the nonzeros are.
        signs: one bit per nonzero, set where it is negative.
    """

    coder: str
    nnz: int
    rice_bits: int
    places: Bytes
    signs: Bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of both streams."""
        return self.places.size + self.signs.size


def encode(values: NDArray[np.int8]) -> Packed:
    """Encode with the coder that needs fewer bytes.

    Args:
        values: [n] in {-1, 0, 1}.
    """
    indices = np.flatnonzero(values)
    signs = _pack(values[indices] < 0)
    bits = rice_bits(indices.size / max(values.size, 1))
    rice, bitmap = _encode_rice(indices, bits), _pack(values != 0)
    if rice.size < bitmap.size:
        return Packed(RICE, indices.size, bits, rice, signs)
    return Packed(BITMAP, indices.size, 0, bitmap, signs)


def decode(packed: Packed, size: int) -> NDArray[np.int8]:
    """The tensor, [size] in {-1, 0, 1}. Allocates in proportion to `size`, which the caller bounds.

    Raises:
        CodecError: the streams do not encode a tensor of this size.
    """
    if not 0 <= packed.nnz <= size:
        raise CodecError(f"it counts {packed.nnz} nonzeros among {size} values")
    if packed.coder == BITMAP:
        indices = _decode_bitmap(packed, size)
    elif packed.coder == RICE:
        indices = _decode_rice(packed, size)
    else:
        raise CodecError(f"the coder {packed.coder!r} is not known")
    signs = _unpack(packed.signs, packed.nnz, "the signs")
    values = np.zeros(size, np.int8)
    values[indices] = 1 - 2 * signs.view(np.int8)
    return values


def rice_bits(density: float) -> int:
    """The best number of remainder bits for gaps between nonzeros of this density."""
    if density >= 1 or density <= 0:
        return 0
    golden = (1 + math.sqrt(5)) / 2
    best = 1 + math.floor(math.log2(math.log(golden - 1) / math.log1p(-density)))
    return min(max(best, 0), MAX_RICE_BITS)


def _encode_rice(indices: NDArray[np.int64], bits: int) -> Bytes:
    if not indices.size:
        return np.empty(0, np.uint8)
    gaps = np.diff(indices, prepend=-1) - 1
    ends = np.cumsum((gaps >> bits) + 1) - 1
    unary = np.zeros(ends[-1] + 1, np.uint8)
    unary[ends] = 1
    remainders = (gaps[:, None] >> np.arange(bits)) & 1
    return np.concatenate([_pack(unary), _pack(remainders.reshape(-1))])


def _decode_rice(packed: Packed, size: int) -> NDArray[np.int64]:
    nnz, bits = packed.nnz, packed.rice_bits
    if not 0 <= bits <= MAX_RICE_BITS:
        raise CodecError(f"its remainders have {bits} bits")
    num_unary = packed.places.size - -(-nnz * bits // 8)
    longest = (size >> bits) + nnz  # bits of the unary part: the quotients, and an end for each
    if not 0 <= num_unary <= -(-longest // 8):
        raise CodecError(f"{packed.places.size} bytes cannot place {nnz} nonzeros")
    remainders = _unpack(packed.places[num_unary:], nnz * bits, "the remainders")
    ends = np.flatnonzero(np.unpackbits(packed.places[:num_unary], bitorder="little"))
    used = int(ends[-1]) + 1 if ends.size else 0
    if ends.size != nnz or -(-used // 8) != num_unary:
        raise CodecError(f"the quotients of {ends.size} gaps are stored, not of {nnz}")
    if used > longest:  # also keeps the sums below from overflowing
        raise CodecError(f"it places nonzeros beyond its {size} values")
    steps = (np.diff(ends, prepend=-1) - 1) << bits
    for bit in range(bits):
        steps += remainders[bit::bits].astype(np.int64) << bit
    indices = np.cumsum(steps + 1) - 1
    if nnz and indices[-1] >= size:
        raise CodecError(f"it places nonzeros beyond its {size} values")
    return indices


def _decode_bitmap(packed: Packed, size: int) -> NDArray[np.int64]:
    indices = np.flatnonzero(_unpack(packed.places, size, "the bitmap"))
    if indices.size != packed.nnz or packed.rice_bits:
        raise CodecError(f"the bitmap has {indices.size} bits set, not {packed.nnz}")
    return indices


def _pack(bits: NDArray[np.generic]) -> Bytes:
    return np.packbits(bits.astype(bool), bitorder="little")


def _unpack(data: Bytes, count: int, what: str) -> Bytes:
    """`count` bits, of exactly as many bytes as they need, padded with zeros."""
    if data.size != -(-count // 8):
        raise CodecError(f"{what} take {data.size} bytes, not {-(-count // 8)}")
    if count % 8 and data[-1] >> count % 8:
        raise CodecError(f"{what} are not padded with zeros")
    return np.unpackbits(data, count=count, bitorder="little")
