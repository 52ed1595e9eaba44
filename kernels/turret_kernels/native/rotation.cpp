// Block-diagonal changes of rows by slot: out = x + sum of w * x D over a row's entries.
#include <algorithm>
#include <vector>

#include "common.h"
#include "pool.h"

namespace {

struct Blocks {
  const float* values;
  int64_t size, stride;  // stride 0: one block for all
};

// y += w * x D for one row of n features, all float32.
void add_blocks(float* y, const float* x, const Blocks& d, int64_t n, float weight) {
  for (int64_t first = 0, block = 0; first < n; first += d.size, ++block) {
    const float* values = d.values + block * d.stride;
    for (int64_t c = 0; c < d.size; c += 16) {
      const __mmask16 m = tail_mask(d.size - c);
      __m512 sum = _mm512_setzero_ps();
      for (int64_t k = 0; k < d.size; ++k)
        sum = _mm512_fmadd_ps(_mm512_set1_ps(x[first + k]),
                              _mm512_maskz_loadu_ps(m, values + k * d.size + c), sum);
      float* out = y + first + c;
      const __m512 old = _mm512_maskz_loadu_ps(m, out);
      _mm512_mask_storeu_ps(out, m, _mm512_fmadd_ps(_mm512_set1_ps(weight), sum, old));
    }
  }
}

}  // namespace

// The number of entries is read when the call runs, so that a recorded call serves every batch.
TURRET_API void turret_rotate(bf16* out, const bf16* x, int64_t rows, int64_t n,
                              const Blocks* table, const int32_t* slot, const float* weight,
                              const int32_t* row_start, const int32_t* row_count,
                              const int64_t* count) {
  turret::Pool::get().run(rows, [=](int64_t row) {
    static thread_local std::vector<float> wide;  // the row, then its sum
    bool copied = false;
    for (int64_t i = 0; i < *count; ++i) {
      const Blocks& d = table[slot[i]];
      if (d.size == 0 || row < row_start[i] || row >= row_start[i] + row_count[i]) continue;
      if (!copied) {
        wide.resize(2 * n);
        for (int64_t k = 0; k < n; ++k) wide[k] = wide[n + k] = to_f32(x[row * n + k]);
        copied = true;
      }
      add_blocks(wide.data() + n, wide.data(), d, n, weight[i]);
    }
    if (!copied) {
      std::memcpy(out + row * n, x + row * n, n * sizeof(bf16));
      return;
    }
    for (int64_t k = 0; k < n; k += 16) {
      const __mmask16 m = tail_mask(n - k);
      store_bf16(out + row * n + k, _mm512_maskz_loadu_ps(m, wide.data() + n + k), m);
    }
  });
}
