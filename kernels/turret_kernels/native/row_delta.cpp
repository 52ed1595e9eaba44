// Changed rows of the head: y[rows, ids] += w * x[rows] delta^T, for few ids per slot.
#include <algorithm>

#include "common.h"
#include "pool.h"

namespace {

struct Slot {
  const int64_t* ids;  // [count]
  const float* delta;  // [count][k]
  int64_t count;       // 0 = the slot has nothing here
};

float dot(const bf16* x, const float* w, int64_t k) {
  __m512 acc = _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 16) {
    const __mmask16 m = tail_mask(k - i);
    acc = _mm512_fmadd_ps(load_bf16(x + i, m), _mm512_maskz_loadu_ps(m, w + i), acc);
  }
  return _mm512_reduce_add_ps(acc);
}

}  // namespace

// x: [T][k], y: [T][ldy]. Entries one after another, because they may share rows.
TURRET_API void turret_row_delta(float* y, int64_t ldy, const bf16* x, int64_t k, const void* slots,
                                 const int32_t* slot, const float* weight,
                                 const int32_t* row_start, const int32_t* row_count,
                                 const int64_t* count) {
  for (int64_t e = 0; e < *count; ++e) {
    const Slot s = static_cast<const Slot*>(slots)[slot[e]];
    const int64_t first = row_start[e], rows = row_count[e];
    const int64_t step = std::max<int64_t>(1, 16384 / (k * rows));
    turret::Pool::get().run((s.count + step - 1) / step, [=](int64_t chunk) {
      for (int64_t i = chunk * step; i < std::min(s.count, (chunk + 1) * step); ++i)
        for (int64_t r = first; r < first + rows; ++r)
          y[r * ldy + s.ids[i]] += weight[e] * dot(x + r * k, s.delta + i * k, k);
    });
  }
}
