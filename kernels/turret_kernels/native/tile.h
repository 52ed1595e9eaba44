// C[rows][16] (+)= A[rows][k] * B[k/2][16][2]: the one multiply that all CPU kernels share.
//
// On AMX a block is one tile product; elsewhere vdpbf16ps on sixteen columns at a time. Either way a
// row's result does not depend on how many rows share the call: the order of the sum is k alone, so
// a token computes the same numbers whatever batch it meets (batch invariance).
#pragma once
#include "common.h"

namespace turret {

constexpr int kTileRows = 16, kTileCols = 16;
// How far ahead of a stream to prefetch: the hardware's own prefetcher stops at every 4 KB.
constexpr int64_t kAhead = 4096;

#ifdef __AMX_BF16__
// Tile 0 accumulates, 1 holds A, 2 holds B. Valid for `rows`, `cols` and k in multiples of 32, or
// for one k below 32 given as `depth`.
static inline void configure(int rows, int cols, int depth) {
  TileConfig config;
  const int k = depth < 32 ? depth : 32;
  config.set(0, rows, cols * 4);
  config.set(1, rows, k * 2);
  config.set(2, k / 2, cols * 4);
  config.load();
}

// lda: elements between rows of A. ldb: elements between pair rows of B. c: rows 16 floats apart.
template <bool Stream = false>
static inline void multiply_tiles(float* c, const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                                  int64_t k, bool accumulate) {
  __asm__ volatile("" ::: "memory");  // the intrinsics do not say that tile loads read memory
  if (accumulate)
    _tile_loadd(0, c, kTileCols * 4);
  else
    _tile_zero(0);
  for (int64_t i = 0; i < k; i += 32) {
    if constexpr (Stream)
      for (int line = 0; line < 16; ++line)
        _mm_prefetch((const char*)(b + i / 2 * ldb) + kAhead + line * 64, _MM_HINT_T0);
    _tile_loadd(1, a + i, lda * 2);
    _tile_loadd(2, b + i / 2 * ldb, ldb * 2);
    _tile_dpbf16ps(0, 1, 2);
  }
  _tile_stored(0, c, kTileCols * 4);
}
#endif

template <int Rows>
static inline void multiply_rows(float* c, const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                                 int64_t k, __mmask16 cols, bool accumulate) {
  __m512 acc[Rows];
  for (int r = 0; r < Rows; ++r)
    acc[r] = accumulate ? _mm512_loadu_ps(c + r * kTileCols) : _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 2) {
    const __m512i w = _mm512_maskz_loadu_epi32(cols, b + i / 2 * ldb);
    for (int r = 0; r < Rows; ++r) acc[r] = dot_pair(acc[r], w, a + r * lda + i);
  }
  for (int r = 0; r < Rows; ++r) _mm512_storeu_ps(c + r * kTileCols, acc[r]);
}

static inline void multiply_avx512(float* c, const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                                   int64_t rows, int64_t k, __mmask16 cols, bool accumulate) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8)
    multiply_rows<8>(c + r * kTileCols, a + r * lda, lda, b, ldb, k, cols, accumulate);
  for (; r + 2 <= rows; r += 2)
    multiply_rows<2>(c + r * kTileCols, a + r * lda, lda, b, ldb, k, cols, accumulate);
  if (r < rows) multiply_rows<1>(c + r * kTileCols, a + r * lda, lda, b, ldb, k, cols, accumulate);
}

}  // namespace turret
