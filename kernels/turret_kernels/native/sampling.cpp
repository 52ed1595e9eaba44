// One token per row of logits: the likeliest, or a draw among those that the filters keep.
//
// The vocabulary is never sorted: what a filter could keep lies above a floor that follows from the
// filter, and only that is. Sums are in double.
#include <algorithm>
#include <vector>

#include "common.h"
#include "pool.h"

namespace {

struct Candidate {
  float logit;
  int32_t token;
  // Likelier first; equal logits in the order of the vocabulary.
  bool operator<(const Candidate& o) const {
    return logit > o.logit || (logit == o.logit && token < o.token);
  }
};

float max_of(const float* x, int64_t n) {
  __m512 best = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    best = _mm512_mask_max_ps(best, m, best, _mm512_maskz_loadu_ps(m, x + i));
  }
  return _mm512_reduce_max_ps(best);
}

int64_t first_at(const float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    const __mmask16 hit = _mm512_mask_cmp_ps_mask(m, _mm512_maskz_loadu_ps(m, x + i),
                                                  _mm512_set1_ps(value), _CMP_EQ_OQ);
    if (hit) return i + __builtin_ctz(hit);
  }
  return 0;  // every logit is NaN
}

// exp((x - top) / temperature) of 16 logits; lanes beyond the row are zero.
__m512 weights_at(const float* x, int64_t n, int64_t i, float top, float inverse) {
  const __mmask16 m = tail_mask(n - i);
  const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
  const __m512 z = _mm512_mul_ps(_mm512_sub_ps(v, _mm512_set1_ps(top)), _mm512_set1_ps(inverse));
  const __mmask16 kept =
      _mm512_mask_cmp_ps_mask(m, z, _mm512_set1_ps(-80.0f), _CMP_GT_OQ);  // less is nothing
  return _mm512_maskz_mov_ps(kept, exp_ps(z));
}

// The token at which the running sum of weights, in the order of the vocabulary, passes `target`.
int64_t draw_all(const float* x, int64_t n, float top, float inverse, double uniform) {
  double total = 0;
  for (int64_t i = 0; i < n; i += 16)
    total += _mm512_reduce_add_ps(weights_at(x, n, i, top, inverse));
  const double target = uniform * total;
  double sum = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 w = weights_at(x, n, i, top, inverse);
    const double here = _mm512_reduce_add_ps(w);
    if (here == 0) continue;
    if (sum + here > target) {
      alignas(64) float lanes[16];
      _mm512_store_ps(lanes, w);
      for (int64_t j = 0; j < std::min<int64_t>(16, n - i); ++j) {
        if (lanes[j] == 0) continue;
        last = i + j;
        if ((sum += lanes[j]) > target) return last;
      }
    } else {
      sum += here;
      last = i + 15 - __builtin_clz(_mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_GT_OQ) << 16);
    }
  }
  return last;  // rounding went past the end
}

int64_t draw_filtered(const float* x, int64_t n, float top, float inverse, int64_t top_k,
                      double top_p, double min_p, double uniform) {
  double total = 0;
  for (int64_t i = 0; i < n; i += 16)
    total += _mm512_reduce_add_ps(weights_at(x, n, i, top, inverse));
  // Tokens below (1 - p) / V of the mass weigh less than 1 - p together, so none is in the nucleus.
  // With top-k the nucleus is a share of what top-k keeps, and the bound does not hold.
  double floor = top_k > 0 ? 0 : (1 - top_p) / static_cast<double>(n) * total;
  if (top_k == 0) floor = std::max(floor, min_p);  // the likeliest token weighs 1
  const float lowest =
      floor > 0 ? top + static_cast<float>(std::log(floor * 0.999)) / inverse : -INFINITY;
  static thread_local std::vector<Candidate> kept;
  kept.clear();
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    const __m512 v = _mm512_maskz_loadu_ps(m, x + i);
    __mmask16 hits = _mm512_mask_cmp_ps_mask(m, v, _mm512_set1_ps(lowest), _CMP_GE_OQ);
    for (; hits; hits &= hits - 1) {
      const int64_t t = i + __builtin_ctz(hits);
      if (x[t] != -INFINITY) kept.push_back({x[t], static_cast<int32_t>(t)});
    }
  }
  size_t size = kept.size();
  if (top_k > 0 && static_cast<size_t>(top_k) < size) {
    size = static_cast<size_t>(top_k);
    std::nth_element(kept.begin(), kept.begin() + size - 1, kept.end());
  }
  std::sort(kept.begin(), kept.begin() + size);
  const auto weight = [&](size_t i) { return std::exp(double(kept[i].logit - top) * inverse); };
  double mass = total;
  if (top_k > 0) {
    mass = 0;
    for (size_t i = 0; i < size; ++i) mass += weight(i);
  }
  // The token that crosses top-p stays; min-p is relative to the likeliest, whose weight is 1.
  double before = 0, sum = 0;
  size_t count = 0;
  for (; count < size; ++count) {
    const double w = weight(count);
    if (count > 0 && (before >= top_p * mass || w < min_p)) break;
    before += w;
    sum += w;
  }
  std::sort(kept.begin(), kept.begin() + count,
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  const double target = uniform * sum;
  double running = 0;
  for (size_t i = 0; i + 1 < count; ++i)
    if ((running += weight(i)) > target) return kept[i].token;
  return kept[count - 1].token;
}

}  // namespace

TURRET_API void turret_sample(int64_t* tokens, const float* logits, int64_t rows, int64_t vocab,
                              const float* temperature, const int64_t* top_k, const float* top_p,
                              const float* min_p, const double* uniform) {
  turret::Pool::get().run(rows, [=](int64_t r) {
    const float* x = logits + r * vocab;
    const float top = max_of(x, vocab), inverse = 1.0f / temperature[r];
    if (temperature[r] == 0 || top == -INFINITY)
      tokens[r] = first_at(x, vocab, top);
    else if (top_k[r] == 0 && top_p[r] >= 1 && min_p[r] == 0)
      tokens[r] = draw_all(x, vocab, top, inverse, uniform[r]);
    else
      tokens[r] = draw_filtered(x, vocab, top, inverse, std::min(top_k[r], vocab), top_p[r],
                                min_p[r], uniform[r]);
  });
}
