// y = x W^T + b in bf16 with W laid out as [N/16][K/2][16][2]: sixteen output columns side by side,
// pairs of inputs innermost. One row of 64 bytes is both an AVX-512 operand of vdpbf16ps and a row
// of an AMX B tile, so a weight is stored once and streamed front to back whatever the batch.
#include <algorithm>

#include "common.h"
#include "pool.h"

namespace {

constexpr int64_t kColumns = 16;

// Rows of the final tile leave through f32 so that bias and rounding happen once.
template <typename Out>
void store_row(Out* y, __m512 acc, const bf16* bias, int64_t column, int64_t n) {
  __mmask16 mask = tail_mask(n - column);
  if (bias) acc = _mm512_add_ps(acc, load_bf16(bias + column, mask));
  if constexpr (sizeof(Out) == 4)
    _mm512_mask_storeu_ps(y + column, mask, acc);
  else
    store_bf16(y + column, acc, mask);
}

template <int Rows, typename Out>
void block_avx512(Out* y, int64_t ldy, const bf16* x, const bf16* w, const bf16* bias,
                  int64_t column, int64_t blocks, int64_t n, int64_t k) {
  // Two column blocks share each broadcast of x; the second may be absent at the edge.
  __m512 acc[2][Rows];
  for (int r = 0; r < Rows; ++r) acc[0][r] = acc[1][r] = _mm512_setzero_ps();
  const bf16 *w0 = w, *w1 = blocks > 1 ? w + k * kColumns : w;
  for (int64_t i = 0; i < k; i += 2) {
    __m512i a = _mm512_load_si512(w0 + i * kColumns), b = _mm512_load_si512(w1 + i * kColumns);
    for (int r = 0; r < Rows; ++r) {
      acc[0][r] = dot_pair(acc[0][r], a, x + r * k + i);
      acc[1][r] = dot_pair(acc[1][r], b, x + r * k + i);
    }
  }
  for (int64_t c = 0; c < blocks; ++c)
    for (int r = 0; r < Rows; ++r)
      store_row(y + r * ldy, acc[c][r], bias, column + c * kColumns, n);
}

template <typename Out>
void columns_avx512(Out* y, int64_t ldy, const bf16* x, const bf16* w, const bf16* bias,
                    int64_t column, int64_t blocks, int64_t m, int64_t n, int64_t k) {
  int64_t r = 0;
  for (; r + 8 <= m; r += 8)
    block_avx512<8>(y + r * ldy, ldy, x + r * k, w, bias, column, blocks, n, k);
  switch (m - r) {
#define TURRET_ROWS(R) \
  case R:              \
    return block_avx512<R>(y + r * ldy, ldy, x + r * k, w, bias, column, blocks, n, k);
    TURRET_ROWS(1) TURRET_ROWS(2) TURRET_ROWS(3) TURRET_ROWS(4)
    TURRET_ROWS(5) TURRET_ROWS(6) TURRET_ROWS(7)
#undef TURRET_ROWS
  }
}

#ifdef __AMX_BF16__
// Tiles 0-3 accumulate (row half, column half), 4-5 hold x, 6-7 hold W.
void configure_linear(int64_t rows) {
  TileConfig config;
  const int64_t top = std::min<int64_t>(rows, 16), bottom = rows > 16 ? rows - 16 : 16;
  for (int t : {0, 1, 4}) config.set(t, top, 64);
  for (int t : {2, 3, 5}) config.set(t, bottom, 64);
  for (int t : {6, 7}) config.set(t, 16, 64);
  config.load();
}

// The hardware's prefetcher stops at every page of 4 KB, which is four tiles.
void prefetch_tile(const bf16* w) {
  constexpr int64_t kAhead = 4096;
  for (int line = 0; line < 16; ++line)
    _mm_prefetch(reinterpret_cast<const char*>(w) + kAhead + line * 64, _MM_HINT_T0);
}

// m is at most 32, or a multiple of 32.
template <typename Out>
void columns_amx(Out* y, int64_t ldy, const bf16* x, const bf16* w, const bf16* bias,
                 int64_t column, int64_t blocks, int64_t m, int64_t n, int64_t k) {
  alignas(64) float out[4][16][16];
  const bf16 *w0 = w, *w1 = w + k * kColumns;
  for (int64_t r = 0; r < m; r += 32) {
    const int64_t top = m - r < 16 ? m - r : 16, bottom = m - r - top < 16 ? m - r - top : 16;
    const bf16 *x0 = x + r * k, *x1 = x0 + 16 * k;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < k; i += 32) {
      prefetch_tile(w0 + i * kColumns);
      if (blocks > 1) prefetch_tile(w1 + i * kColumns);
      _tile_loadd(4, x0 + i, k * 2);
      _tile_loadd(6, w0 + i * kColumns, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (blocks > 1) {
        _tile_loadd(7, w1 + i * kColumns, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (bottom > 0) {
        _tile_loadd(5, x1 + i, k * 2);
        _tile_dpbf16ps(2, 5, 6);
        if (blocks > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out[0], 64);
    _tile_stored(1, out[1], 64);
    if (bottom > 0) {
      _tile_stored(2, out[2], 64);
      _tile_stored(3, out[3], 64);
    }
    for (int64_t i = 0; i < top; ++i)
      for (int64_t c = 0; c < blocks; ++c)
        store_row(y + (r + i) * ldy, _mm512_load_ps(out[c][i]), bias, column + c * kColumns, n);
    for (int64_t i = 0; i < bottom; ++i)
      for (int64_t c = 0; c < blocks; ++c)
        store_row(y + (r + 16 + i) * ldy, _mm512_load_ps(out[2 + c][i]), bias,
                  column + c * kColumns, n);
  }
}
#endif

template <typename Out>
void linear(Out* y, int64_t ldy, const bf16* x, const bf16* w, const bf16* bias, int64_t m,
            int64_t n, int64_t k, [[maybe_unused]] bool tiles) {
  const int64_t blocks = (n + kColumns - 1) / kColumns, pairs = (blocks + 1) / 2;
  // Chunks of at least 64 KB of weights: a few microseconds each.
  const int64_t step = std::max<int64_t>(1, (32 << 10) / (k * kColumns * 2));
  turret::Pool::get().run((pairs + step - 1) / step, [&](int64_t chunk) {
    const int64_t first = chunk * step, last = std::min(pairs, (chunk + 1) * step);
    // Tiles take 32 rows at a time; what is left over has a tile shape of its own, and finds the
    // chunk's weights still in the cache.
    const int64_t split = tiles ? m / 32 * 32 : m;
    for (int64_t row = 0; row < m; row = row < split ? split : m) {
      const int64_t rows = row < split ? split : m - split;
#ifdef __AMX_BF16__
      if (tiles) configure_linear(std::min<int64_t>(rows, 32));
#endif
      for (int64_t p = first; p < last; ++p) {
        const int64_t block = p * 2, here = block + 1 < blocks ? 2 : 1;
        const bf16* wp = w + block * kColumns * k;
#ifdef __AMX_BF16__
        if (tiles) {
          columns_amx(y + row * ldy, ldy, x + row * k, wp, bias, block * kColumns, here, rows, n, k);
          continue;
        }
#endif
        columns_avx512(y, ldy, x, wp, bias, block * kColumns, here, m, n, k);
      }
    }
  });
}

}  // namespace

TURRET_API int turret_has_tiles() {
#ifdef __AMX_BF16__
  return request_tiles();
#else
  return 0;
#endif
}

// packed: [ceil(n/16)][k/2][16][2], zero beyond n. k is even (a multiple of 32 for tiles).
TURRET_API void turret_pack(bf16* packed, const bf16* w, int64_t n, int64_t k) {
  const int64_t blocks = (n + kColumns - 1) / kColumns;
  turret::Pool::get().run(blocks, [&](int64_t b) {
    for (int64_t i = 0; i < k; i += 2)
      for (int64_t c = 0; c < kColumns; ++c) {
        bf16* out = packed + (b * k + i) * kColumns + c * 2;
        const int64_t row = b * kColumns + c;
        out[0] = row < n ? w[row * k + i] : 0;
        out[1] = row < n ? w[row * k + i + 1] : 0;
      }
  });
}

// Rows of y lie ldy apart.
TURRET_API void turret_linear(void* y, int64_t ldy, const bf16* x, const bf16* w, const bf16* bias,
                              int64_t m, int64_t n, int64_t k, int tiles, int f32_out) {
  if (f32_out)
    linear(static_cast<float*>(y), ldy, x, w, bias, m, n, k, tiles);
  else
    linear(static_cast<bf16*>(y), ldy, x, w, bias, m, n, k, tiles);
}
