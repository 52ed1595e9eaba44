// The gated MLP of a few rows whose gate has a threshold (CATS): W_down (g * (W_up x)) with
// g = act(W_gate x) where |g| exceeds it. Behind the gate only live neurons are read: those that
// any row keeps. For that up and down lie side by side per neuron: [I][2][H], the second half
// being the neuron's column of W_down. Where too many live, the packed weights are read instead.
#include <algorithm>
#include <vector>

#include "common.h"
#include "pool.h"

extern "C" void turret_linear(void*, int64_t, const bf16*, const bf16*, const bf16*, int64_t,
                              int64_t, int64_t, int, int);

namespace {

// Neurons are summed in parts, and the parts in their order: a row's result depends neither on the
// number of threads nor on which neurons the other rows keep.
constexpr int64_t kPart = 256;
constexpr int64_t kGroup = 4;  // neurons that are read side by side
constexpr int kMaxRows = 4;

struct Mlp {
  int64_t rows, hidden, inner;
  int activation;
  const bf16 *x, *neurons, *up_bias;
  float* act;        // [rows][I], act(gate), 0 where dead
  int32_t* live;     // per part, the neurons that some row keeps
  int64_t* count;    // per part, how many
  float* sums;       // [parts][rows][H]; inside 32 columns even ones first
  bf16* product;     // [rows][I]
};

// Find the live neurons of a part; `gate` [rows][I].
void find_live(const Mlp& mlp, const bf16* gate, const float* bounds, int64_t part) {
  const int64_t last = std::min(mlp.inner, (part + 1) * kPart);
  int64_t found = 0;
  for (int64_t j = part * kPart; j < last; j += 16) {
    __mmask16 any = 0;
    for (int64_t r = 0; r < mlp.rows; ++r) {
      const __m512 act = act_ps(load_bf16(gate + r * mlp.inner + j), mlp.activation);
      const __mmask16 live =
          _mm512_cmp_ps_mask(_mm512_abs_ps(act), _mm512_set1_ps(bounds[r]), _CMP_NLE_UQ);
      _mm512_storeu_ps(mlp.act + r * mlp.inner + j, _mm512_maskz_mov_ps(live, act));
      any |= live;
    }
    const __m512i index = _mm512_add_epi32(
        _mm512_set1_epi32(static_cast<int>(j)),
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_mask_compressstoreu_epi32(mlp.live + part * kPart + found, any, index);
    found += __builtin_popcount(any);
  }
  mlp.count[part] = found;
}

// The hardware prefetches along a row, but not into the next one.
void prefetch(const bf16* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// Products of N neurons, and what they add to the part's sums. `next` is read after them.
template <int Rows, int N>
void group(const Mlp& mlp, const int32_t* live, const int32_t* next, float* sums) {
  const int64_t hidden = mlp.hidden;
  const bf16 *up[N], *ahead[N];
  for (int n = 0; n < N; ++n) {
    up[n] = mlp.neurons + live[n] * 2 * hidden;
    ahead[n] = mlp.neurons + next[n] * 2 * hidden;
  }
  __m512 acc[N][Rows];
  for (int n = 0; n < N; ++n)
    for (int r = 0; r < Rows; ++r) acc[n][r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < hidden; i += 32) {
    __m512i x[Rows];
    for (int r = 0; r < Rows; ++r) x[r] = _mm512_loadu_si512(mlp.x + r * hidden + i);
    for (int n = 0; n < N; ++n) {
      prefetch(up[n] + hidden + i);
      const __m512bh w = (__m512bh)_mm512_loadu_si512(up[n] + i);
      for (int r = 0; r < Rows; ++r) acc[n][r] = _mm512_dpbf16_ps(acc[n][r], w, (__m512bh)x[r]);
    }
  }
  __m512 h[N][Rows];
  for (int n = 0; n < N; ++n)
    for (int r = 0; r < Rows; ++r) {
      const int64_t at = r * mlp.inner + live[n];
      float value = _mm512_reduce_add_ps(acc[n][r]);
      if (mlp.up_bias) value += to_f32(mlp.up_bias[live[n]]);
      const __m512 gate = _mm512_set1_ps(mlp.act[at]);
      h[n][r] = round_to_bf16(_mm512_mul_ps(gate, round_to_bf16(_mm512_set1_ps(value))));
      store_bf16(mlp.product + at, h[n][r], 1);
    }
  for (int64_t i = 0; i < hidden; i += 32) {
    __m512 even[Rows], odd[Rows];
    for (int r = 0; r < Rows; ++r) {
      even[r] = _mm512_loadu_ps(sums + r * hidden + i);
      odd[r] = _mm512_loadu_ps(sums + r * hidden + i + 16);
    }
    for (int n = 0; n < N; ++n) {
      prefetch(ahead[n] + i);
      const __m512i w = _mm512_loadu_si512(up[n] + hidden + i);
      const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
      const __m512 high =
          _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
      for (int r = 0; r < Rows; ++r) {
        even[r] = _mm512_fmadd_ps(low, h[n][r], even[r]);
        odd[r] = _mm512_fmadd_ps(high, h[n][r], odd[r]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      _mm512_storeu_ps(sums + r * hidden + i, even[r]);
      _mm512_storeu_ps(sums + r * hidden + i + 16, odd[r]);
    }
  }
}

template <int Rows>
void sum_part(const Mlp& mlp, int64_t part) {
  const int32_t* live = mlp.live + part * kPart;
  const int64_t count = mlp.count[part], width = std::min(kPart, mlp.inner - part * kPart);
  float* sums = mlp.sums + part * Rows * mlp.hidden;
  std::fill_n(sums, Rows * mlp.hidden, 0.0f);
  for (int r = 0; r < Rows; ++r)
    std::fill_n(mlp.product + r * mlp.inner + part * kPart, width, bf16{0});
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup) {
    const bool is_last = i + 2 * kGroup > count;  // then there is little to prefetch
    group<Rows, kGroup>(mlp, live + i, live + (is_last ? i : i + kGroup), sums);
  }
  for (; i < count; ++i) group<Rows, 1>(mlp, live + i, live + std::min(i + 1, count - 1), sums);
}

// y [rows][H]: the parts in their order, and the bias.
void add_parts(bf16* y, const Mlp& mlp, const bf16* bias, int64_t parts) {
  constexpr int64_t kColumns = 512;
  const int64_t steps = (mlp.hidden + kColumns - 1) / kColumns;
  const __m512i even = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(8));
  turret::Pool::get().run(mlp.rows * steps, [&](int64_t chunk) {
    const int64_t r = chunk / steps, first = chunk % steps * kColumns;
    for (int64_t i = first; i < std::min(mlp.hidden, first + kColumns); i += 32) {
      __m512 a = _mm512_setzero_ps(), b = a;
      for (int64_t part = 0; part < parts; ++part) {
        const float* sums = mlp.sums + (part * mlp.rows + r) * mlp.hidden + i;
        a = _mm512_add_ps(a, _mm512_loadu_ps(sums));
        b = _mm512_add_ps(b, _mm512_loadu_ps(sums + 16));
      }
      __m512 left = _mm512_permutex2var_ps(a, even, b), right = _mm512_permutex2var_ps(a, odd, b);
      if (bias) {
        left = _mm512_add_ps(left, load_bf16(bias + i));
        right = _mm512_add_ps(right, load_bf16(bias + i + 16));
      }
      store_bf16(y + r * mlp.hidden + i, left);
      store_bf16(y + r * mlp.hidden + i + 16, right);
    }
  });
}

}  // namespace

// neurons [I][2][H] of up [I][H] and down [H][I]. On the calling thread alone: it runs beside the
// steps, and the pool is theirs.
TURRET_API void turret_pack_neurons(bf16* neurons, const bf16* up, const bf16* down, int64_t inner,
                                    int64_t hidden) {
  // 32 neurons at a time: a cache line of each row of down.
  for (int64_t first = 0; first < inner; first += 32) {
    const int64_t last = std::min(inner, first + 32);
    for (int64_t j = first; j < last; ++j)
      std::memcpy(neurons + j * 2 * hidden, up + j * hidden, hidden * sizeof(bf16));
    for (int64_t i = 0; i < hidden; ++i)
      for (int64_t j = first; j < last; ++j) neurons[(j * 2 + 1) * hidden + i] = down[i * inner + j];
  }
}

// At most 4 rows; `product` [rows][I] is what down reads. gate_up and down are packed (linear.cpp),
// biases may be null, `dense_above` is the live share of neurons from which all are read. Rows of no
// entry keep every neuron. H and I are multiples of 32.
TURRET_API void turret_sparse_mlp(bf16* y, bf16* product, const bf16* x, int64_t rows,
                                  int64_t hidden, int64_t inner, const bf16* gate_up,
                                  const bf16* down, const bf16* neurons, const bf16* gate_up_bias,
                                  const bf16* down_bias, const float* thresholds,
                                  const int32_t* slot, const int32_t* row_start,
                                  const int32_t* row_count, const int64_t* count,
                                  int activation, int tiles, float dense_above) {
  float bounds[kMaxRows];
  std::fill_n(bounds, kMaxRows, -1.0f);
  for (int64_t i = 0; i < *count; ++i)
    if (thresholds[slot[i]] >= 0)
      std::fill_n(bounds + row_start[i], row_count[i], thresholds[slot[i]]);

  const int64_t parts = (inner + kPart - 1) / kPart;
  static thread_local std::vector<float> act, sums;
  static thread_local std::vector<int32_t> live;
  static thread_local std::vector<int64_t> counts;
  act.resize(rows * inner);
  sums.resize(parts * rows * hidden);
  live.resize(parts * kPart);
  counts.resize(parts);
  const bf16* up_bias = gate_up_bias ? gate_up_bias + inner : nullptr;
  const Mlp mlp{rows,    hidden,  inner,      activation,  x,             neurons,
                up_bias, act.data(), live.data(), counts.data(), sums.data(), product};
  turret::Pool& pool = turret::Pool::get();

  turret_linear(product, inner, x, gate_up, gate_up_bias, rows, inner, hidden, tiles, 0);
  pool.run(parts, [&](int64_t part) { find_live(mlp, product, bounds, part); });
  int64_t total = 0;
  for (int64_t part = 0; part < parts; ++part) total += mlp.count[part];

  if (total > static_cast<int64_t>(dense_above * inner)) {
    turret_linear(product, inner, x, gate_up + inner * hidden, up_bias, rows, inner, hidden, tiles,
                  0);
    pool.run(parts, [&](int64_t part) {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = part * kPart; j < std::min(inner, (part + 1) * kPart); j += 16) {
          const __m512 gate = _mm512_loadu_ps(mlp.act + r * inner + j);
          const __mmask16 lives = _mm512_cmp_ps_mask(gate, _mm512_setzero_ps(), _CMP_NEQ_UQ);
          bf16* at = product + r * inner + j;
          store_bf16(at, _mm512_maskz_mul_ps(lives, gate, load_bf16(at)));
        }
    });
    turret_linear(y, hidden, product, down, down_bias, rows, hidden, inner, tiles, 0);
    return;
  }
  pool.run(parts, [&](int64_t part) {
    switch (rows) {
      case 1: return sum_part<1>(mlp, part);
      case 2: return sum_part<2>(mlp, part);
      case 3: return sum_part<3>(mlp, part);
      case 4: return sum_part<4>(mlp, part);
    }
  });
  add_parts(y, mlp, down_bias, parts);
}
