// Shared by the CPU kernels: bf16 <-> f32, AVX-512 helpers, tile setup.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define TURRET_API extern "C" __attribute__((visibility("default")))

using bf16 = uint16_t;

static inline float to_f32(bf16 v) {
  uint32_t bits = static_cast<uint32_t>(v) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// 16 bf16 -> 16 f32
static inline __m512 load_bf16(const bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

static inline __m512 load_bf16(const bf16* p, __mmask16 mask) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}

// 16 f32 -> 16 bf16, round to nearest even
static inline void store_bf16(bf16* p, __m512 v) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
}

static inline void store_bf16(bf16* p, __m512 v, __mmask16 mask) {
  _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}

static inline __mmask16 tail_mask(int64_t n) {
  return n >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << n) - 1);
}

// acc[i] += w[2i] * x[0] + w[2i+1] * x[1] for a broadcast pair of bf16
static inline __m512 dot_pair(__m512 acc, __m512i w, const bf16* pair) {
  int32_t bits;
  std::memcpy(&bits, pair, 4);
  return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(bits));
}

// exp(x) for x <= 0 within 2 ulp of bf16-relevant accuracy (degree-5 polynomial, Cephes range split)
static inline __m512 exp_ps(__m512 x) {
  const __m512 log2e = _mm512_set1_ps(1.44269504088896341f);
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

static inline __m512 round_to_bf16(__m512 v) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)), 16));
}

// In the order of activation.py's ACTIVATIONS.
enum Activation : int { kSilu = 0, kGeluTanh = 1 };

// The activation of g, rounded to bf16 as a tensor of that dtype would be
static inline __m512 act_ps(__m512 g, int activation) {
  // SiLU is g * sigmoid(g); GELU with tanh is g * sigmoid(2 sqrt(2/pi) (g + 0.044715 g^3)).
  __m512 x = g;
  if (activation == kGeluTanh) {
    const __m512 cubic = _mm512_set1_ps(1.5957691216f * 0.044715f);
    x = _mm512_mul_ps(
        g, _mm512_fmadd_ps(_mm512_mul_ps(g, g), cubic, _mm512_set1_ps(1.5957691216f)));
  }
  // With the exponential of -|x|, which cannot overflow.
  const __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512 top = _mm512_mask_blend_ps(negative, _mm512_set1_ps(1.0f), e);
  return round_to_bf16(
      _mm512_div_ps(_mm512_mul_ps(g, top), _mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
// Tiles hold state that Linux grants per process on request (ARCH_REQ_XCOMP_PERM, XTILEDATA).
static inline bool request_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
  void set(int tile, int num_rows, int num_bytes) {
    rows[tile] = num_rows;
    colsb[tile] = num_bytes;
  }
  void load() const {
    // GCC's intrinsic names only the first 8 bytes as its input: keep the other stores.
    __asm__ volatile("" ::"m"(*this) : "memory");
    _tile_loadconfig(this);
  }
};
#endif
