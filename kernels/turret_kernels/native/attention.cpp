// RoPE with the write of keys and values into pages, and causal attention over the pages.
//
// A page of one kv head holds `page` tokens (a multiple of 32). Keys lie as [page/16][D/2][16][2]
// and values as [page/2][D][2]: both are B operands of tile.h, for Q K^T and for P V.
#include <algorithm>
#include <vector>

#include "pool.h"
#include "tile.h"

namespace {

using turret::kTileCols;
using turret::kTileRows;

constexpr int64_t kChunk = 128;     // keys per softmax step; anchored at position 0
constexpr int64_t kMaxHeadDim = 256;
constexpr float kMasked = -1e30f;   // finite, so that a wholly masked chunk yields no NaN

struct Block {
  int32_t sequence, head;
  int64_t row, rows;  // query rows (position-major, then query head of the group)
};

// 2^t by a polynomial on [-1/2, 1/2] (relative error 5e-5: the result is rounded to bf16 anyway).
inline __m512 exp2_coarse(__m512 t) {
  const __m512 n = _mm512_roundscale_ps(t, 0), f = _mm512_sub_ps(t, n);
  __m512 p = _mm512_set1_ps(9.618129e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550411e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402265e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931472e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

#ifdef __AMX_BF16__
// Tiles 0-3 accumulate, 4 holds the rows, 5 the operand of layout [K/2][16][2].
void configure_attention(int rows) {
  TileConfig config;
  for (int t = 0; t < 5; ++t) config.set(t, rows, 64);
  config.set(5, 16, 64);
  config.load();
}

// score[c] = query . keys[c]^T for `count` blocks of 16 keys.
void score_tiles(float (*score)[kTileRows * kTileCols], const bf16* query, int64_t dim,
                 const bf16* const* keys, int64_t count) {
  __asm__ volatile("" ::: "memory");  // the intrinsics do not say that tile loads read memory
  int64_t c = 0;
  for (; c + 4 <= count; c += 4) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < dim; i += 32) {
      _tile_loadd(4, query + i, dim * 2);
      _tile_loadd(5, keys[c] + i * 16, 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(5, keys[c + 1] + i * 16, 64);
      _tile_dpbf16ps(1, 4, 5);
      _tile_loadd(5, keys[c + 2] + i * 16, 64);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(5, keys[c + 3] + i * 16, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, score[c], 64);
    _tile_stored(1, score[c + 1], 64);
    _tile_stored(2, score[c + 2], 64);
    _tile_stored(3, score[c + 3], 64);
  }
  for (; c < count; ++c) {
    _tile_zero(0);
    for (int64_t i = 0; i < dim; i += 32) {
      _tile_loadd(4, query + i, dim * 2);
      _tile_loadd(5, keys[c] + i * 16, 64);
      _tile_dpbf16ps(0, 4, 5);
    }
    _tile_stored(0, score[c], 64);
  }
}

// acc[d] += weight . values for `count` blocks of 32 keys.
void weigh_tiles(float (*acc)[kTileRows * kTileCols], const bf16* weight, int64_t dim,
                 const bf16* const* values, int64_t count) {
  __asm__ volatile("" ::: "memory");
  int64_t d = 0;
  for (; d + 4 <= dim / 16; d += 4) {
    _tile_loadd(0, acc[d], 64);
    _tile_loadd(1, acc[d + 1], 64);
    _tile_loadd(2, acc[d + 2], 64);
    _tile_loadd(3, acc[d + 3], 64);
    for (int64_t b = 0; b < count; ++b) {
      const bf16* v = values[b] + d * 32;
      _tile_loadd(4, weight + b * 32, kChunk * 2);
      _tile_loadd(5, v, dim * 4);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(5, v + 32, dim * 4);
      _tile_dpbf16ps(1, 4, 5);
      _tile_loadd(5, v + 64, dim * 4);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(5, v + 96, dim * 4);
      _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, acc[d], 64);
    _tile_stored(1, acc[d + 1], 64);
    _tile_stored(2, acc[d + 2], 64);
    _tile_stored(3, acc[d + 3], 64);
  }
  for (; d < dim / 16; ++d) {
    _tile_loadd(0, acc[d], 64);
    for (int64_t b = 0; b < count; ++b) {
      _tile_loadd(4, weight + b * 32, kChunk * 2);
      _tile_loadd(5, values[b] + d * 32, dim * 4);
      _tile_dpbf16ps(0, 4, 5);
    }
    _tile_stored(0, acc[d], 64);
  }
}
#endif

void attend(const Block& task, bf16* out, const bf16* q, int64_t q_stride, const bf16* k_cache,
            const bf16* v_cache, const int32_t* pages, int64_t query_start, int64_t query_len,
            int64_t context, int64_t heads, int64_t kv_heads, int64_t dim, int64_t page,
            float scale, int64_t window, [[maybe_unused]] bool tiles) {
  const int64_t group = heads / kv_heads;
  const int rows = static_cast<int>(task.rows);
  alignas(64) bf16 query[kTileRows * kMaxHeadDim];
  alignas(64) float score[kChunk / 16][kTileRows * kTileCols];
  alignas(64) bf16 weight[kTileRows * kChunk];
  alignas(64) float acc[kMaxHeadDim / 16][kTileRows * kTileCols];
  alignas(64) bf16 tail[32 * kMaxHeadDim];
  float top[kTileRows], sum[kTileRows];
  int64_t position[kTileRows];
  for (int r = 0; r < rows; ++r) {
    const int64_t token = (task.row + r) / group, head = task.head * group + (task.row + r) % group;
    std::memcpy(query + r * dim, q + (query_start + token) * q_stride + head * dim, dim * 2);
    position[r] = context - query_len + token;
    top[r] = kMasked;
    sum[r] = 0;
  }
  for (int64_t d = 0; d < dim / 16; ++d)
    for (int r = 0; r < rows; ++r) _mm512_store_ps(acc[d] + r * kTileCols, _mm512_setzero_ps());
  const int64_t end = position[rows - 1] + 1;
  const int64_t begin = window ? std::max<int64_t>(0, position[0] + 1 - window) / kChunk * kChunk : 0;
  const int64_t page_size = page * dim;
  const float scale2 = scale * 1.44269504f;  // the softmax is taken to base 2
#ifdef __AMX_BF16__
  if (tiles) configure_attention(rows);
#endif
  for (int64_t start = begin; start < end; start += kChunk) {
    const int64_t keys = std::min(kChunk, end - start), columns = (keys + 15) / 16;
    const bf16 *key_block[kChunk / 16], *value_block[kChunk / 32];
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t key = start + c * 16;
      key_block[c] = k_cache + (pages[key / page] * kv_heads + task.head) * page_size +
                     key % page / 16 * dim * 16;
    }
#ifdef __AMX_BF16__
    if (tiles)
      score_tiles(score, query, dim, key_block, columns);
    else
#endif
      for (int64_t c = 0; c < columns; ++c)
        turret::multiply_avx512(score[c], query, dim, key_block[c], 32, rows, dim, 0xFFFF, false);
    const int64_t padded = (keys + 31) / 32 * 32;
    for (int r = 0; r < rows; ++r) {
      // Keys first..last (inclusive) of this chunk are visible to row r.
      const int64_t last = position[r] - start, first = window ? last - window + 1 : 0;
      __m512 best = _mm512_set1_ps(kMasked);
      const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const bool whole = first <= 0 && last >= columns * 16 - 1;
      for (int64_t c = 0; c < columns; ++c) {
        float* s = score[c] + r * kTileCols;
        __m512 v = _mm512_mul_ps(_mm512_load_ps(s), _mm512_set1_ps(scale2));
        if (!whole) {
          const __m512i index = _mm512_add_epi32(lane, _mm512_set1_epi32((int)(c * 16)));
          const __mmask16 seen =
              _mm512_cmple_epi32_mask(index, _mm512_set1_epi32((int)last)) &
              _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32((int)std::max<int64_t>(first, 0)));
          v = _mm512_mask_blend_ps(seen, _mm512_set1_ps(kMasked), v);
        }
        _mm512_store_ps(s, v);
        best = _mm512_max_ps(best, v);
      }
      const float high = std::max(top[r], _mm512_reduce_max_ps(best));
      const float decay = std::exp2(top[r] - high);
      __m512 total = _mm512_setzero_ps();
      for (int64_t c = 0; c < padded / 16; ++c) {
        __m512 p = _mm512_setzero_ps();
        if (c < columns) {
          const __m512 v = _mm512_load_ps(score[c] + r * kTileCols);
          p = exp2_coarse(_mm512_sub_ps(v, _mm512_set1_ps(high)));
          p = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, _mm512_set1_ps(kMasked), _CMP_LE_OQ), p,
                                   _mm512_setzero_ps());
        }
        total = _mm512_add_ps(total, p);
        store_bf16(weight + r * kChunk + c * 16, p);
      }
      sum[r] = sum[r] * decay + _mm512_reduce_add_ps(total);
      top[r] = high;
      if (decay != 1.0f)
        for (int64_t d = 0; d < dim / 16; ++d) {
          float* a = acc[d] + r * kTileCols;
          _mm512_store_ps(a, _mm512_mul_ps(_mm512_load_ps(a), _mm512_set1_ps(decay)));
        }
    }
    for (int64_t base = 0; base < padded; base += 32) {
      const int64_t key = start + base;
      const bf16* v = v_cache + (pages[key / page] * kv_heads + task.head) * page_size +
                      key % page * dim;
      if (keys - base < 32) {
        // What lies behind the last key belongs to nobody and may be NaN: 0 * NaN is NaN.
        const int64_t valid = keys - base;
        std::memcpy(tail, v, static_cast<size_t>((valid + 1) / 2 * dim * 4));
        if (valid & 1)
          for (int64_t d = 0; d < dim; ++d) tail[(valid / 2 * dim + d) * 2 + 1] = 0;
        std::memset(tail + (valid + 1) / 2 * dim * 2, 0,
                    static_cast<size_t>((16 - (valid + 1) / 2) * dim * 4));
        v = tail;
      }
      value_block[base / 32] = v;
    }
#ifdef __AMX_BF16__
    if (tiles) {
      weigh_tiles(acc, weight, dim, value_block, padded / 32);
      continue;
    }
#endif
    for (int64_t b = 0; b < padded / 32; ++b)
      for (int64_t d = 0; d < dim / 16; ++d)
        turret::multiply_avx512(acc[d], weight + b * 32, kChunk, value_block[b] + d * 32, dim * 2,
                                rows, 32, 0xFFFF, true);
  }
  for (int r = 0; r < rows; ++r) {
    const int64_t token = (task.row + r) / group, head = task.head * group + (task.row + r) % group;
    bf16* o = out + ((query_start + token) * heads + head) * dim;
    const __m512 inverse = _mm512_set1_ps(1.0f / sum[r]);
    for (int64_t d = 0; d < dim / 16; ++d)
      store_bf16(o + d * 16, _mm512_mul_ps(_mm512_load_ps(acc[d] + r * kTileCols), inverse));
  }
}

// Rotates `dim` values; lanes run over the half dimensions.
void rotate(bf16* out, const bf16* in, const float* cos_sin, int64_t dim) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i += 16) {
    const __mmask16 m = tail_mask(half - i);
    const __m512 a = load_bf16(in + i, m), b = load_bf16(in + half + i, m);
    const __m512 c = _mm512_maskz_loadu_ps(m, cos_sin + i);
    const __m512 s = _mm512_maskz_loadu_ps(m, cos_sin + half + i);
    store_bf16(out + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)), m);
    store_bf16(out + half + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)), m);
  }
}

}  // namespace

TURRET_API void turret_rope_and_store(bf16* q, const bf16* k, const bf16* v, int64_t q_stride,
                                      int64_t k_stride, int64_t v_stride, const float* cos_sin,
                                      const int64_t* positions, const int64_t* slots, bf16* k_cache,
                                      bf16* v_cache, int64_t tokens, int64_t heads,
                                      int64_t kv_heads, int64_t dim, int64_t page) {
  const int64_t step = std::max<int64_t>(1, 8192 / (dim * heads));
  turret::Pool::get().run((tokens + step - 1) / step, [=](int64_t chunk) {
    for (int64_t t = chunk * step; t < std::min(tokens, (chunk + 1) * step); ++t) {
      const float* table = cos_sin + positions[t] * dim;
      for (int64_t h = 0; h < heads; ++h) {
        bf16* head = q + t * q_stride + h * dim;
        rotate(head, head, table, dim);
      }
      const int64_t block = slots[t] / page, offset = slots[t] % page;
      for (int64_t h = 0; h < kv_heads; ++h) {
        alignas(64) bf16 key[kMaxHeadDim];
        rotate(key, k + t * k_stride + h * dim, table, dim);
        const int64_t base = (block * kv_heads + h) * page * dim;
        bf16* kp = k_cache + base + offset / 16 * dim * 16 + offset % 16 * 2;
        for (int64_t d = 0; d < dim; d += 2) std::memcpy(kp + d * 16, key + d, 4);
        bf16* vp = v_cache + base + offset / 2 * dim * 2 + offset % 2;
        const bf16* value = v + t * v_stride + h * dim;
        for (int64_t d = 0; d < dim; ++d) vp[d * 2] = value[d];
      }
    }
  });
}

TURRET_API void turret_paged_attention(bf16* out, const bf16* q, int64_t q_stride,
                                       const bf16* k_cache, const bf16* v_cache,
                                       const int32_t* query_start, const int32_t* context_len,
                                       const int32_t* block_table, int64_t table_width,
                                       int64_t sequences, int64_t heads, int64_t kv_heads,
                                       int64_t dim, int64_t page, float scale, int64_t window,
                                       int tiles) {
  static thread_local std::vector<Block> tasks;
  tasks.clear();
  const int64_t group = heads / kv_heads;
  for (int32_t s = 0; s < sequences; ++s) {
    const int64_t rows = (query_start[s + 1] - query_start[s]) * group;
    if (rows == 0) continue;
    // Late rows see the longest context: start them first, so that no thread ends alone on one.
    for (int64_t row = (rows - 1) / kTileRows * kTileRows; row >= 0; row -= kTileRows)
      for (int32_t h = 0; h < kv_heads; ++h)
        tasks.push_back({s, h, row, std::min<int64_t>(kTileRows, rows - row)});
  }
  const Block* list = tasks.data();
  turret::Pool::get().run(static_cast<int64_t>(tasks.size()), [=](int64_t i) {
    const Block& task = list[i];
    const int32_t s = task.sequence;
    attend(task, out, q, q_stride, k_cache, v_cache, block_table + s * table_width, query_start[s],
           query_start[s + 1] - query_start[s], context_len[s], heads, kv_heads, dim, page, scale,
           window, tiles);
  });
}
