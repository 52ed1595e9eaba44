// Elementwise adapters by slot: scales, paired rotations, offsets. Tables are float32 [slots][n].
#include <algorithm>
#include <vector>

#include "common.h"
#include "pool.h"

namespace {

// What acts on which rows; the number of entries is read when the call runs (graph.cpp).
struct Entries {
  const int32_t* slot;
  const float* weight;
  const int32_t *row_start, *row_count;
  const int64_t* count;
};

__m512 load(const bf16* p, __mmask16 m) { return load_bf16(p, m); }
__m512 load(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
void store(bf16* p, __m512 v, __mmask16 m) { store_bf16(p, v, m); }
void store(float* p, __m512 v, __mmask16 m) { _mm512_mask_storeu_ps(p, m, v); }

struct Row {
  int64_t row;
  int32_t slot;
  float weight;
};

// f(row, slot, weight) for every row of every entry whose slot is present.
template <typename F>
void for_rows(const Entries& e, const uint8_t* present, int64_t n, const F& f) {
  static thread_local std::vector<Row> found;
  found.clear();
  bool is_disjoint = true;
  int64_t last = 0;
  for (int64_t i = 0; i < *e.count; ++i) {
    if (!present[e.slot[i]]) continue;
    is_disjoint &= e.row_start[i] >= last;
    last = e.row_start[i] + e.row_count[i];
    for (int64_t row = e.row_start[i]; row < last; ++row)
      found.push_back({row, e.slot[i], e.weight[i]});
  }
  const Row* rows = found.data();
  const int64_t count = found.size();
  // Stacked adapters share rows and act one after another. Else some 4k values per chunk: the
  // tables come from memory, and one core alone does not keep it busy.
  const int64_t step = is_disjoint ? std::max<int64_t>(1, 4096 / n) : count;
  turret::Pool::get().run(count ? (count + step - 1) / step : 0, [=](int64_t chunk) {
    for (int64_t i = chunk * step; i < std::min(count, (chunk + 1) * step); ++i)
      f(rows[i].row, rows[i].slot, rows[i].weight);
  });
}

template <typename T>
void offset(T* y, int64_t ldy, int64_t column, int64_t n, const float* table,
            const uint8_t* present, const Entries& entries) {
  for_rows(entries, present, n, [&](int64_t row, int32_t slot, float weight) {
    T* out = y + row * ldy + column;
    const float* vector = table + static_cast<int64_t>(slot) * n;
    const __m512 w = _mm512_set1_ps(weight);
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 m = tail_mask(n - i);
      store(out + i, _mm512_fmadd_ps(w, _mm512_maskz_loadu_ps(m, vector + i), load(out + i, m)), m);
    }
  });
}

template <typename T>
void scale(T* y, int64_t ldy, int64_t column, int64_t n, const float* gain, const float* turn,
           const int32_t* distance, const uint8_t* present, const Entries& entries) {
  for_rows(entries, present, n, [&](int64_t row, int32_t slot, float weight) {
    T* out = y + row * ldy + column;
    const float* g = gain + static_cast<int64_t>(slot) * n;
    const __m512 w = _mm512_set1_ps(weight);
    const int64_t d = distance[slot];
    if (d == 0) {
      for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = tail_mask(n - i);
        const __m512 v = load(out + i, m);
        const __m512 change = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, g + i));
        store(out + i, _mm512_fmadd_ps(w, change, v), m);
      }
      return;
    }
    const float* t = turn + static_cast<int64_t>(slot) * n;
    for (int64_t group = 0; group < n; group += 2 * d)
      for (int64_t i = group; i < group + d; i += 16) {
        const __mmask16 m = tail_mask(group + d - i);
        const __m512 a = load(out + i, m), b = load(out + i + d, m);
        const __m512 da = _mm512_fmadd_ps(b, _mm512_maskz_loadu_ps(m, t + i),
                                          _mm512_mul_ps(a, _mm512_maskz_loadu_ps(m, g + i)));
        const __m512 db = _mm512_fmadd_ps(a, _mm512_maskz_loadu_ps(m, t + i + d),
                                          _mm512_mul_ps(b, _mm512_maskz_loadu_ps(m, g + i + d)));
        store(out + i, _mm512_fmadd_ps(w, da, a), m);
        store(out + i + d, _mm512_fmadd_ps(w, db, b), m);
      }
  });
}

}  // namespace

TURRET_API void turret_offset(void* y, int64_t ldy, int64_t column, int64_t n, const float* table,
                              const uint8_t* present, const int32_t* slot, const float* weight,
                              const int32_t* row_start, const int32_t* row_count,
                              const int64_t* count, int f32) {
  const Entries entries{slot, weight, row_start, row_count, count};
  if (f32)
    offset(static_cast<float*>(y), ldy, column, n, table, present, entries);
  else
    offset(static_cast<bf16*>(y), ldy, column, n, table, present, entries);
}

TURRET_API void turret_scale(void* y, int64_t ldy, int64_t column, int64_t n, const float* gain,
                             const float* turn, const int32_t* distance, const uint8_t* present,
                             const int32_t* slot, const float* weight, const int32_t* row_start,
                             const int32_t* row_count, const int64_t* count, int f32) {
  const Entries entries{slot, weight, row_start, row_count, count};
  if (f32)
    scale(static_cast<float*>(y), ldy, column, n, gain, turn, distance, present, entries);
  else
    scale(static_cast<bf16*>(y), ldy, column, n, gain, turn, distance, present, entries);
}

// x = 0 where |x| <= the slot's threshold, for the rows of the entries; all else (NaN) is copied.
// thresholds: [slots], negative where a slot has none.
TURRET_API void turret_threshold(bf16* out, const bf16* x, int64_t rows, int64_t n,
                                 const float* thresholds, const int32_t* slot,
                                 const int32_t* row_start, const int32_t* row_count,
                                 const int64_t* count) {
  static thread_local std::vector<float> bounds;
  bounds.assign(rows, -1.0f);
  for (int64_t i = 0; i < *count; ++i)
    if (thresholds[slot[i]] >= 0)
      std::fill_n(bounds.begin() + row_start[i], row_count[i], thresholds[slot[i]]);
  const float* bound = bounds.data();
  const int64_t step = std::max<int64_t>(1, 16384 / n);
  turret::Pool::get().run((rows + step - 1) / step, [=](int64_t chunk) {
    for (int64_t r = chunk * step; r < std::min(rows, (chunk + 1) * step); ++r) {
      const __m512 least = _mm512_set1_ps(bound[r]);
      for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = tail_mask(n - i);
        const __m512 v = load_bf16(x + r * n + i, m);
        const __mmask16 live = _mm512_cmp_ps_mask(_mm512_abs_ps(v), least, _CMP_NLE_UQ);
        store_bf16(out + r * n + i, _mm512_maskz_mov_ps(live, v), m);
      }
    }
  });
}
