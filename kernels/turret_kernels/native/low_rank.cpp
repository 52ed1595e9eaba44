// Low-rank branches of many adapters: y[rows] += w * (x[rows] A^T) B, true ranks, no padding.
//
// An adapter of rank r owns consecutive rank rows of each pool. Inside its rows A lies in groups of
// g <= 16 ranks as [K/2][g][2] and B as [N/16][r/2][16][2] (r even; an odd rank has a zero row): both
// are B operands of tile.h as they stand, and both are read front to back.
//
// A branch with experts is a mixture chosen by every token: the last `experts` hidden values are the
// logits of a gate, and softmax over them weighs as many groups of the hidden values before.
#include <algorithm>
#include <vector>

#include "pool.h"
#include "tile.h"

namespace {

using turret::kTileCols;
using turret::kTileRows;

struct Slice {
  const bf16 *a, *b;
  const int32_t *start, *count;  // [slots]
  const float* weight;           // [entries]
  int64_t n, column;
  const int32_t* experts;  // [slots]; 0 = no mixture
};

// A block of at most 16 rows of one entry at one slice; its hidden values lie at `hidden`.
struct Task {
  int32_t slice, entry, rank, rows;
  int64_t row, hidden;
};

struct Job {
  std::vector<Task> tasks;
  std::vector<bf16> hidden;
};

// Weighs a mixture's hidden values (ranks, gate included) in place; the gate's own become 0.
void mix(float* hidden, int ranks, int experts) {
  float* gate = hidden + ranks - experts;
  const int group = (ranks - experts) / experts;
  float top = gate[0], total = 0;
  for (int e = 1; e < experts; ++e) top = std::max(top, gate[e]);
  for (int e = 0; e < experts; ++e) total += gate[e] = std::exp(gate[e] - top);
  for (int e = 0; e < experts; ++e)
    for (int r = 0; r < group; ++r) hidden[e * group + r] *= gate[e] / total;
  std::fill_n(gate, experts, 0.0f);
}

void shrink(const Task& t, const Slice& s, bf16* hidden, const bf16* x, const int32_t* slot,
            int64_t k, [[maybe_unused]] bool tiles) {
  alignas(64) float c[kTileRows * kTileCols];
  const bf16* a = s.a + static_cast<int64_t>(s.start[slot[t.entry]]) * k;
  const int experts = s.experts[slot[t.entry]];
  static thread_local std::vector<float> wide;  // a mixture's values, before they are weighed
  if (experts) wide.resize(t.rows * t.rank);
  const __m512 weight = _mm512_set1_ps(s.weight[t.entry]);
  for (int g = 0; g < t.rank; g += kTileCols) {
    const int cols = std::min(kTileCols, t.rank - g);
    const bf16* b = a + static_cast<int64_t>(g) * k;
#ifdef __AMX_BF16__
    if (tiles) {
      turret::configure(t.rows, cols, 32);
      turret::multiply_tiles<true>(c, x + t.row * k, k, b, cols * 2, k, false);
    } else
#endif
      turret::multiply_avx512(c, x + t.row * k, k, b, cols * 2, t.rows, k, tail_mask(cols), false);
    for (int r = 0; r < t.rows; ++r) {
      const __m512 v = _mm512_load_ps(c + r * kTileCols);
      const int64_t at = r * t.rank + g;
      if (experts)
        _mm512_mask_storeu_ps(wide.data() + at, tail_mask(cols), v);
      else
        store_bf16(hidden + t.hidden + at, _mm512_mul_ps(weight, v), tail_mask(cols));
    }
  }
  if (!experts) return;
  for (int r = 0; r < t.rows; ++r) {
    float* values = wide.data() + r * t.rank;
    mix(values, s.count[slot[t.entry]], experts);
    for (int g = 0; g < t.rank; g += kTileCols) {
      const __mmask16 m = tail_mask(t.rank - g);
      store_bf16(hidden + t.hidden + r * t.rank + g,
                 _mm512_mul_ps(weight, _mm512_maskz_loadu_ps(m, values + g)), m);
    }
  }
}

template <typename Out>
void expand(const Task& t, const Slice& s, Out* y, int64_t ldy, const bf16* hidden,
            const int32_t* slot, int64_t first, int64_t last, [[maybe_unused]] bool tiles) {
  alignas(64) float c[kTileRows * kTileCols];
  const bf16* b = s.b + static_cast<int64_t>(s.start[slot[t.entry]]) * s.n;
  const bf16* h = hidden + t.hidden;
  const int whole = t.rank / 32 * 32, rest = t.rank - whole;
  for (int64_t n = first; n < last; n += kTileCols) {
    const bf16* bn = b + n * t.rank;
#ifdef __AMX_BF16__
    if (tiles) {
      if (whole) {
        if (rest || n == first) turret::configure(t.rows, kTileCols, 32);
        turret::multiply_tiles<true>(c, h, t.rank, bn, kTileCols * 2, whole, false);
      }
      if (rest) {
        if (whole || n == first) turret::configure(t.rows, kTileCols, rest);
        turret::multiply_tiles<true>(c, h + whole, t.rank, bn + whole * kTileCols, kTileCols * 2, rest,
                               whole > 0);
      }
    } else
#endif
      turret::multiply_avx512(c, h, t.rank, bn, kTileCols * 2, t.rows, t.rank, 0xFFFF, false);
    for (int r = 0; r < t.rows; ++r) {
      Out* out = y + (t.row + r) * ldy + s.column + n;
      const __m512 delta = _mm512_load_ps(c + r * kTileCols);
      if constexpr (sizeof(Out) == 4)
        _mm512_storeu_ps(out, _mm512_add_ps(delta, _mm512_loadu_ps(out)));
      else
        store_bf16(out, _mm512_add_ps(delta, load_bf16(out)));
    }
  }
}

template <typename Out>
void low_rank(Out* y, const bf16* x, const Slice* slices, int64_t num_slices, const int32_t* slot,
              const int32_t* row_start, const int32_t* row_count, int64_t entries, int64_t ldy,
              int64_t k, bool tiles) {
  static thread_local Job job;  // grows to the largest batch, then no allocation
  job.tasks.clear();
  int64_t size = 0;
  for (int32_t s = 0; s < num_slices; ++s)
    for (int32_t e = 0; e < entries; ++e) {
      const int32_t rank = (slices[s].count[slot[e]] + 1) & ~1;
      if (rank == 0) continue;
      for (int32_t r = 0; r < row_count[e]; r += kTileRows) {
        const int32_t rows = std::min(kTileRows, row_count[e] - r);
        job.tasks.push_back({s, e, rank, rows, row_start[e] + r, size});
        size += static_cast<int64_t>(rows) * rank;
      }
    }
  if (job.tasks.empty()) return;
  if (static_cast<int64_t>(job.hidden.size()) < size) job.hidden.resize(size);
  bf16* hidden = job.hidden.data();
  const Task* tasks = job.tasks.data();
  const int64_t num_tasks = static_cast<int64_t>(job.tasks.size());
  turret::Pool::get().run(num_tasks, [=](int64_t i) {
    shrink(tasks[i], slices[tasks[i].slice], hidden, x, slot, k, tiles && k % 32 == 0);
  });
  // Columns are split, not rows: stacked adapters share rows, and sums must come in one order.
  const int64_t parts = std::min<int64_t>(turret::Pool::get().threads() * 2, slices[0].n / 64 + 1);
  turret::Pool::get().run(parts, [=](int64_t part) {
    for (int64_t i = 0; i < num_tasks; ++i) {
      const Slice& s = slices[tasks[i].slice];
      const int64_t blocks = s.n / kTileCols;
      const int64_t first = blocks * part / parts * 16;
      const int64_t last = blocks * (part + 1) / parts * 16;
      if (first < last) expand(tasks[i], s, y, ldy, hidden, slot, first, last, tiles);
    }
  });
}

}  // namespace

// Writes an adapter's rows. a: [rank][k], b: [rank][n], row major, n a multiple of 16; the pool rows
// [start, start + round_up(rank, 2)) are overwritten.
TURRET_API void turret_write_rank_rows(bf16* pool_a, bf16* pool_b, const bf16* a, const bf16* b,
                                       int64_t start, int64_t rank, int64_t k, int64_t n) {
  const int64_t even = (rank + 1) & ~int64_t{1};
  for (int64_t g = 0; g < even; g += kTileCols) {
    const int64_t cols = std::min<int64_t>(kTileCols, even - g);
    bf16* out = pool_a + (start + g) * k;
    for (int64_t i = 0; i < k; i += 2)
      for (int64_t c = 0; c < cols; ++c)
        for (int64_t p = 0; p < 2; ++p)
          out[(i / 2 * cols + c) * 2 + p] = g + c < rank ? a[(g + c) * k + i + p] : 0;
  }
  bf16* out = pool_b + start * n;
  for (int64_t c = 0; c < n; c += kTileCols)
    for (int64_t r = 0; r < even; r += 2)
      for (int64_t i = 0; i < kTileCols; ++i, out += 2) {
        out[0] = b[r * n + c + i];
        out[1] = r + 1 < rank ? b[(r + 1) * n + c + i] : 0;
      }
}

// The number of entries is read when the call runs, so that a recorded call serves every batch.
TURRET_API void turret_low_rank(void* y, const bf16* x, const Slice* slices, int64_t num_slices,
                                const int32_t* slot, const int32_t* row_start,
                                const int32_t* row_count, const int64_t* entries, int64_t ldy,
                                int64_t k, int tiles, int f32_out) {
  if (f32_out)
    low_rank(static_cast<float*>(y), x, slices, num_slices, slot, row_start, row_count,
             *entries, ldy, k, tiles);
  else
    low_rank(static_cast<bf16*>(y), x, slices, num_slices, slot, row_start, row_count,
             *entries, ldy, k, tiles);
}
