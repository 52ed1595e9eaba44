// Sparse changes of linears: y[rows, column + o] += w * sum(values * x[rows, columns]), CSR by slot.
//
// The values are read once per sixteen rows of an entry. A sum has sixteen partial sums, by the
// position of a value in its row, and they are added up as a tree: whether the lanes of a vector are
// the partial sums (few rows) or the rows (many), a row computes the same numbers.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"
#include "pool.h"

namespace {

constexpr int kLanes = 16;
constexpr int32_t kMany = 4;  // rows from which on a vector holds rows

struct Slot {
  const int64_t* rows;  // [n + 1]; null = the slot has nothing here
  const int32_t* columns;
  const bf16* values;
};

// At most 16 rows of one entry; their inputs lie at `x` of the scratch: [rows][k] or [k][16].
struct Task {
  int32_t entry, rows;
  int64_t row, x;
};

struct Job {
  std::vector<Task> tasks;
  std::vector<float> x;
};

// y += w * v, rounded alike from both loops below.
void add(float* y, float w, float v) { *y = std::fma(w, v, *y); }
void add(bf16* y, float w, float v) { store_bf16(y, _mm512_set1_ps(std::fma(w, v, to_f32(*y))), 1); }

float sum(float* lanes) {
  for (int step = kLanes / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}

void widen(const Task& t, float* out, const bf16* x, int64_t k) {
  x += t.row * k;
  if (t.rows < kMany) {
    for (int64_t i = 0; i < t.rows * k; ++i) out[i] = to_f32(x[i]);
    return;
  }
  for (int64_t i = 0; i < k; ++i)
    for (int r = 0; r < kLanes; ++r) out[i * kLanes + r] = r < t.rows ? to_f32(x[r * k + i]) : 0.0f;
}

template <typename Out>
void few_rows(const Task& t, const Slot& s, float weight, Out* y, int64_t ldy, const float* x,
              int64_t k, int64_t first, int64_t last) {
  alignas(64) float lanes[kLanes];
  for (int64_t o = first; o < last; ++o) {
    const int64_t begin = s.rows[o], end = s.rows[o + 1];
    if (begin == end) continue;
    for (int r = 0; r < t.rows; ++r) {
      __m512 acc = _mm512_setzero_ps();
      for (int64_t i = begin; i < end; i += kLanes) {
        const __mmask16 m = tail_mask(end - i);
        const __m512i at = _mm512_maskz_loadu_epi32(m, s.columns + i);
        const __m512 v = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), m, at, x + r * k, 4);
        acc = _mm512_fmadd_ps(load_bf16(s.values + i, m), v, acc);
      }
      _mm512_store_ps(lanes, acc);
      add(y + (t.row + r) * ldy + o, weight, sum(lanes));
    }
  }
}

template <typename Out>
void many_rows(const Task& t, const Slot& s, float weight, Out* y, int64_t ldy, const float* x,
               int64_t first, int64_t last) {
  alignas(64) float out[kLanes];
  for (int64_t o = first; o < last; ++o) {
    const int64_t begin = s.rows[o], end = s.rows[o + 1];
    if (begin == end) continue;
    __m512 acc[kLanes];
    for (int l = 0; l < kLanes; ++l) acc[l] = _mm512_setzero_ps();
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes)
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l)
        acc[l] = _mm512_fmadd_ps(_mm512_set1_ps(to_f32(s.values[i + l])),
                                 _mm512_loadu_ps(x + s.columns[i + l] * int64_t{kLanes}), acc[l]);
    __m512 part[kLanes];  // another array, so that `acc` stays in registers
    for (int l = 0; l < kLanes; ++l) part[l] = acc[l];
    for (int l = 0; i < end; ++i, ++l)
      part[l] = _mm512_fmadd_ps(_mm512_set1_ps(to_f32(s.values[i])),
                                _mm512_loadu_ps(x + s.columns[i] * int64_t{kLanes}), part[l]);
    for (int step = kLanes / 2; step; step /= 2)
      for (int l = 0; l < step; ++l) part[l] = _mm512_add_ps(part[l], part[l + step]);
    _mm512_store_ps(out, part[0]);
    for (int r = 0; r < t.rows; ++r) add(y + (t.row + r) * ldy + o, weight, out[r]);
  }
}

template <typename Out>
void sparse_delta(Out* y, int64_t ldy, int64_t n, const bf16* x, int64_t k, const Slot* slots,
                  const int32_t* slot, const float* weight, const int32_t* row_start,
                  const int32_t* row_count, int64_t entries) {
  static thread_local Job job;  // grows to the largest batch, then no allocation
  job.tasks.clear();
  int64_t size = 0;
  for (int32_t e = 0; e < entries; ++e) {
    if (!slots[slot[e]].rows) continue;
    for (int32_t r = 0; r < row_count[e]; r += kLanes) {
      const int32_t rows = std::min(kLanes, row_count[e] - r);
      job.tasks.push_back({e, rows, row_start[e] + r, size});
      size += k * (rows < kMany ? rows : kLanes);
    }
  }
  if (job.tasks.empty()) return;
  if (static_cast<int64_t>(job.x.size()) < size) job.x.resize(size);
  float* wide = job.x.data();
  const Task* tasks = job.tasks.data();
  const int64_t num_tasks = static_cast<int64_t>(job.tasks.size());
  turret::Pool::get().run(num_tasks,
                          [=](int64_t i) { widen(tasks[i], wide + tasks[i].x, x, k); });
  // Outputs are split, not rows: stacked adapters share rows, and sums must come in one order.
  const int64_t parts = std::min<int64_t>(turret::Pool::get().threads() * 4, n / 16 + 1);
  turret::Pool::get().run(parts, [=](int64_t part) {
    const int64_t first = n * part / parts, last = n * (part + 1) / parts;
    for (const Task* t = tasks; t < tasks + num_tasks; ++t) {
      const Slot& s = slots[slot[t->entry]];
      if (t->rows < kMany)
        few_rows(*t, s, weight[t->entry], y, ldy, wide + t->x, k, first, last);
      else
        many_rows(*t, s, weight[t->entry], y, ldy, wide + t->x, first, last);
    }
  });
}

}  // namespace

// x: [T][k]; y: [T][ldy], of which [column, column + n) is the linear's output. The number of entries
// and the slots' pointers are read when the call runs, so that a recorded call serves every batch.
TURRET_API void turret_sparse_delta(void* y, int64_t ldy, int64_t column, int64_t n, const bf16* x,
                                    int64_t k, const void* slots, const int32_t* slot,
                                    const float* weight, const int32_t* row_start,
                                    const int32_t* row_count, const int64_t* count, int f32) {
  const Slot* table = static_cast<const Slot*>(slots);
  if (f32)
    sparse_delta(static_cast<float*>(y) + column, ldy, n, x, k, table, slot, weight, row_start,
                 row_count, *count);
  else
    sparse_delta(static_cast<bf16*>(y) + column, ldy, n, x, k, table, slot, weight, row_start,
                 row_count, *count);
}
