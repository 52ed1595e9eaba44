// Sums over a tilted distribution, the inner loop of dynamic logit fusion (dynamic_weights.py).
//
// Pieces of 2048 tokens stay in L1 between the search for the maximum and the sums, are shared out
// to the cores, and are added up in one order in double.
#include <algorithm>
#include <vector>

#include "common.h"
#include "pool.h"

namespace {

constexpr int64_t kPiece = 2048;

struct Sums {
  float top;
  double total, first, second;
};

Sums sums_of(const float* x, const float* d, int64_t n, float a) {
  const __m512 tilt = _mm512_set1_ps(a);
  __m512 best = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    const __m512 z = _mm512_fmadd_ps(tilt, _mm512_maskz_loadu_ps(m, d + i),
                                     _mm512_maskz_loadu_ps(m, x + i));
    best = _mm512_mask_max_ps(best, m, best, z);
  }
  const float top = _mm512_reduce_max_ps(best);
  const __m512 base = _mm512_set1_ps(top);
  __m512 total = _mm512_setzero_ps(), first = total, second = total;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = tail_mask(n - i);
    const __m512 v = _mm512_maskz_loadu_ps(m, d + i);
    const __m512 z = _mm512_fmadd_ps(tilt, v, _mm512_maskz_loadu_ps(m, x + i));
    const __m512 e = _mm512_maskz_mov_ps(m, exp_ps(_mm512_sub_ps(z, base)));
    const __m512 ev = _mm512_mul_ps(e, v);
    total = _mm512_add_ps(total, e);
    first = _mm512_add_ps(first, ev);
    second = _mm512_fmadd_ps(ev, v, second);
  }
  return {top, _mm512_reduce_add_ps(total), _mm512_reduce_add_ps(first),
          _mm512_reduce_add_ps(second)};
}

}  // namespace

// out [4] = top, and the sums of e, e d, e d^2 with e = exp(x + a d - top); x, d [n], finite.
TURRET_API void turret_tilted_sums(double* out, const float* x, const float* d, int64_t n, float a) {
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  std::vector<Sums> found(pieces);
  turret::Pool::get().run(pieces, [&](int64_t p) {
    const int64_t begin = p * kPiece;
    found[p] = sums_of(x + begin, d + begin, std::min(kPiece, n - begin), a);
  });
  double top = -INFINITY, total = 0, first = 0, second = 0;
  for (const Sums& s : found) top = std::max<double>(top, s.top);
  for (const Sums& s : found) {
    const double scale = std::exp(s.top - top);
    total += scale * s.total;
    first += scale * s.first;
    second += scale * s.second;
  }
  out[0] = top;
  out[1] = total;
  out[2] = first;
  out[3] = second;
}
