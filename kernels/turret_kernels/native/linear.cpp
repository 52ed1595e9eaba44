// y = x W^T + b in bf16 with W laid out as [N/16][K/2][16][2]: sixteen output columns side by side,
// pairs of inputs innermost. One row of 64 bytes is both an AVX-512 operand of vdpbf16ps and a row
// of an AMX B tile, so a weight is stored once and streamed front to back whatever the batch.
//
// Weights of eight bits lie as [N/16][K/2][2][16] and become such rows when they are read, exactly:
// bf16 holds every code. Their outputs are multiplied by a scale each.
#include <algorithm>
#include <vector>

#include "common.h"
#include "pool.h"

namespace {

constexpr int64_t kColumns = 16;

// An input pair of sixteen columns.
__m512i load_pair(const bf16* w) { return _mm512_load_si512(w); }

__m512i load_pair(const int8_t* w) {
  const auto wide = [](const int8_t* codes) {
    const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(loaded)));
  };
  // Whole numbers up to 256 leave the lower half of an f32 empty: the upper is their bf16.
  return _mm512_or_si512(wide(w + kColumns), _mm512_srli_epi32(wide(w), 16));
}

// Rows of the final tile leave through f32 so that scale, bias and rounding happen once.
template <typename Out>
void store_row(Out* y, __m512 acc, const float* scale, const bf16* bias, int64_t column,
               int64_t n) {
  __mmask16 mask = tail_mask(n - column);
  if (scale) acc = _mm512_mul_ps(acc, _mm512_maskz_loadu_ps(mask, scale + column));
  if (bias) acc = _mm512_add_ps(acc, load_bf16(bias + column, mask));
  if constexpr (sizeof(Out) == 4)
    _mm512_mask_storeu_ps(y + column, mask, acc);
  else
    store_bf16(y + column, acc, mask);
}

template <int Rows, typename Out, typename Weight>
void block_avx512(Out* y, int64_t ldy, const bf16* x, const Weight* w, const float* scale,
                  const bf16* bias, int64_t column, int64_t blocks, int64_t n, int64_t k) {
  // Two column blocks share each broadcast of x; the second may be absent at the edge.
  __m512 acc[2][Rows];
  for (int r = 0; r < Rows; ++r) acc[0][r] = acc[1][r] = _mm512_setzero_ps();
  const Weight *w0 = w, *w1 = blocks > 1 ? w + k * kColumns : w;
  for (int64_t i = 0; i < k; i += 2) {
    const __m512i a = load_pair(w0 + i * kColumns), b = load_pair(w1 + i * kColumns);
    for (int r = 0; r < Rows; ++r) {
      acc[0][r] = dot_pair(acc[0][r], a, x + r * k + i);
      acc[1][r] = dot_pair(acc[1][r], b, x + r * k + i);
    }
  }
  for (int64_t c = 0; c < blocks; ++c)
    for (int r = 0; r < Rows; ++r)
      store_row(y + r * ldy, acc[c][r], scale, bias, column + c * kColumns, n);
}

template <typename Out, typename Weight>
void columns_avx512(Out* y, int64_t ldy, const bf16* x, const Weight* w, const float* scale,
                    const bf16* bias, int64_t column, int64_t blocks, int64_t m, int64_t n,
                    int64_t k) {
  int64_t r = 0;
  for (; r + 8 <= m; r += 8)
    block_avx512<8>(y + r * ldy, ldy, x + r * k, w, scale, bias, column, blocks, n, k);
  switch (m - r) {
#define TURRET_ROWS(R) \
  case R:              \
    return block_avx512<R>(y + r * ldy, ldy, x + r * k, w, scale, bias, column, blocks, n, k);
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
void columns_amx(Out* y, int64_t ldy, const bf16* x, const bf16* w, const float* scale,
                 const bf16* bias, int64_t column, int64_t blocks, int64_t m, int64_t n,
                 int64_t k) {
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
        store_row(y + (r + i) * ldy, _mm512_load_ps(out[c][i]), scale, bias, column + c * kColumns,
                  n);
    for (int64_t i = 0; i < bottom; ++i)
      for (int64_t c = 0; c < blocks; ++c)
        store_row(y + (r + 16 + i) * ldy, _mm512_load_ps(out[2 + c][i]), scale, bias,
                  column + c * kColumns, n);
  }
}
#endif

// Where a thread keeps the bf16 of the codes it is at, aligned to a row.
bf16* scratch(int64_t size) {
  struct alignas(64) Row {
    bf16 values[32];
  };
  static thread_local std::vector<Row> rows;
  if (rows.size() * 32 < static_cast<size_t>(size)) rows.resize((size + 31) / 32);
  return rows[0].values;
}

template <typename Out>
void columns(Out* y, int64_t ldy, const bf16* x, const bf16* w, const float* scale,
             const bf16* bias, int64_t column, int64_t blocks, int64_t m, int64_t n, int64_t k,
             [[maybe_unused]] bool tiles) {
#ifdef __AMX_BF16__
  if (tiles) return columns_amx(y, ldy, x, w, scale, bias, column, blocks, m, n, k);
#endif
  columns_avx512(y, ldy, x, w, scale, bias, column, blocks, m, n, k);
}

template <typename Out>
void columns(Out* y, int64_t ldy, const bf16* x, const int8_t* w, const float* scale,
             const bf16* bias, int64_t column, int64_t blocks, int64_t m, int64_t n, int64_t k,
             bool tiles) {
  // Eight rows are one pass over the codes; more would widen them again and again.
  if (!tiles && m <= 8) return columns_avx512(y, ldy, x, w, scale, bias, column, blocks, m, n, k);
  bf16* wide = scratch(blocks * k * kColumns);
  for (int64_t i = 0; i < blocks * k * kColumns; i += 2 * kColumns)
    _mm512_store_si512(wide + i, load_pair(w + i));
  columns(y, ldy, x, wide, scale, bias, column, blocks, m, n, k, tiles);
}

template <typename Out, typename Weight>
void linear(Out* y, int64_t ldy, const bf16* x, const Weight* w, const float* scale,
            const bf16* bias, int64_t m, int64_t n, int64_t k, bool tiles) {
  const int64_t blocks = (n + kColumns - 1) / kColumns, pairs = (blocks + 1) / 2;
  // Chunks of at least 64 KB of weights: a few microseconds each.
  const int64_t step = std::max<int64_t>(1, (64 << 10) / (k * kColumns * 2 * sizeof(Weight)));
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
        columns(y + row * ldy, ldy, x + row * k, w + block * kColumns * k, scale, bias,
                block * kColumns, here, rows, n, k, tiles);
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
    linear(static_cast<float*>(y), ldy, x, w, nullptr, bias, m, n, k, tiles);
  else
    linear(static_cast<bf16*>(y), ldy, x, w, nullptr, bias, m, n, k, tiles);
}

// packed: [ceil(n/16)][k/2][2][16], zero beyond n; scale: [n].
TURRET_API void turret_linear_int8(void* y, int64_t ldy, const bf16* x, const int8_t* w,
                                   const float* scale, const bf16* bias, int64_t m, int64_t n,
                                   int64_t k, int tiles, int f32_out) {
  if (f32_out)
    linear(static_cast<float*>(y), ldy, x, w, scale, bias, m, n, k, tiles);
  else
    linear(static_cast<bf16*>(y), ldy, x, w, scale, bias, m, n, k, tiles);
}
