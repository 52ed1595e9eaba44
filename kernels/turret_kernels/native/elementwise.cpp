// RMSNorm (with the residual addition before it) and act(gate) * up, row by row.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common.h"
#include "pool.h"

namespace {

// Rows per chunk: about 4k values, so that a small batch stays on the calling thread.
int64_t rows_per_chunk(int64_t n) { return std::max<int64_t>(1, 8192 / n); }

__m512 load_gain(const bf16* p, __mmask16 mask) { return load_bf16(p, mask); }
__m512 load_gain(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }

template <typename Gain>
void norm_row(bf16* out, const bf16* x, const Gain* weight, int64_t n, float eps) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 v = load_bf16(x + i, tail_mask(n - i));
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(n);
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(mean + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    __m512 v = _mm512_mul_ps(load_bf16(x + i, m), scale);
    // A gain of 16 bits multiplies the rounded value (Llama), a float32 one is wide to the end
    // (Gemma): as the reference models do.
    if constexpr (std::is_same_v<Gain, bf16>) v = round_to_bf16(v);
    store_bf16(out + i, _mm512_mul_ps(v, load_gain(weight + i, m)), m);
  }
}

template <typename Gain>
void norm_rows(bf16* out, const bf16* x, bf16* residual, const Gain* weight, int64_t rows,
               int64_t heads, int64_t n, int64_t x_stride, int64_t head_stride, float eps) {
  const int64_t step = rows_per_chunk(n);
  turret::Pool::get().run((rows + step - 1) / step, [=](int64_t chunk) {
    for (int64_t r = chunk * step; r < std::min(rows, (chunk + 1) * step); ++r) {
      const bf16* row = x + r / heads * x_stride + r % heads * head_stride;
      if (residual) {
        bf16* sum = residual + r * n;
        for (int64_t i = 0; i < n; i += 16) {
          const __mmask16 m = tail_mask(n - i);
          store_bf16(sum + i, _mm512_add_ps(load_bf16(sum + i, m), load_bf16(row + i, m)), m);
        }
        row = sum;
      }
      norm_row(out + r * n, row, weight, n, eps);
    }
  });
}

}  // namespace

// x is [rows / heads][heads][n]. residual [rows][n] may be null; otherwise residual += x first, and
// the norm is taken of the sum. weight is float32 if `wide`, else bf16.
TURRET_API void turret_rms_norm(bf16* out, const bf16* x, bf16* residual, const void* weight,
                                int wide, int64_t rows, int64_t heads, int64_t n, int64_t x_stride,
                                int64_t head_stride, float eps) {
  if (wide)
    norm_rows(out, x, residual, static_cast<const float*>(weight), rows, heads, n, x_stride,
              head_stride, eps);
  else
    norm_rows(out, x, residual, static_cast<const bf16*>(weight), rows, heads, n, x_stride,
              head_stride, eps);
}

namespace {

// Where |act(gate)| does not exceed the row's bound the result is 0; `bounds` may be null.
void act_mul(bf16* out, const bf16* gate_up, int64_t rows, int64_t n, int activation,
             const float* bounds) {
  const int64_t step = rows_per_chunk(n);
  turret::Pool::get().run((rows + step - 1) / step, [=](int64_t chunk) {
    for (int64_t r = chunk * step; r < std::min(rows, (chunk + 1) * step); ++r) {
      const bf16 *gate = gate_up + r * 2 * n, *up = gate + n;
      const __m512 bound = _mm512_set1_ps(bounds ? bounds[r] : -1.0f);
      for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = tail_mask(n - i);
        const __m512 rounded = act_ps(load_bf16(gate + i, m), activation);
        const __mmask16 live = _mm512_cmp_ps_mask(_mm512_abs_ps(rounded), bound, _CMP_NLE_UQ);
        const __m512 product = _mm512_maskz_mul_ps(live, rounded, load_bf16(up + i, m));
        store_bf16(out + r * n + i, product, m);
      }
    }
  });
}

}  // namespace

TURRET_API void turret_act_mul(bf16* out, const bf16* gate_up, int64_t rows, int64_t n,
                               int activation) {
  act_mul(out, gate_up, rows, n, activation, nullptr);
}

// As turret_act_mul, with thresholds [slots] for the rows of the entries; negative: none.
TURRET_API void turret_act_threshold_mul(bf16* out, const bf16* gate_up, int64_t rows, int64_t n,
                                         int activation, const float* thresholds,
                                         const int32_t* slot, const int32_t* row_start,
                                         const int32_t* row_count, const int64_t* count) {
  static thread_local std::vector<float> bounds;
  bounds.assign(rows, -1.0f);
  for (int64_t i = 0; i < *count; ++i)
    if (thresholds[slot[i]] >= 0)
      std::fill_n(bounds.begin() + row_start[i], row_count[i], thresholds[slot[i]]);
  act_mul(out, gate_up, rows, n, activation, bounds.data());
}
