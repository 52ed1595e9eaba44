// Runs a recorded list of kernel calls: what a CUDA graph is to a GPU. The arguments are those of
// the recording, so inputs must lie where they lay then; see turret_kernels/graph.py.
#include <cstring>

#include "common.h"

#define DECLARE(name, ...) extern "C" void turret_##name(__VA_ARGS__)
DECLARE(linear, void*, int64_t, const bf16*, const bf16*, const bf16*, int64_t, int64_t, int64_t,
        int, int);
DECLARE(linear_int8, void*, int64_t, const bf16*, const int8_t*, const float*, const bf16*, int64_t,
        int64_t, int64_t, int, int);
DECLARE(low_rank, void*, const bf16*, const void*, int64_t, const int32_t*, const int32_t*,
        const int32_t*, const int64_t*, int64_t, int64_t, int, int);
DECLARE(rope_and_store, bf16*, const bf16*, const bf16*, int64_t, int64_t, int64_t, const float*,
        const int64_t*, const int64_t*, bf16*, bf16*, int64_t, int64_t, int64_t, int64_t, int64_t);
DECLARE(paged_attention, bf16*, const bf16*, int64_t, const bf16*, const bf16*, const int32_t*,
        const int32_t*, const int32_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float,
        int64_t, int);
DECLARE(rms_norm, bf16*, const bf16*, bf16*, const void*, int, int64_t, int64_t, int64_t, int64_t,
        int64_t, float);
DECLARE(act_mul, bf16*, const bf16*, int64_t, int64_t, int);
DECLARE(act_threshold_mul, bf16*, const bf16*, int64_t, int64_t, int, const float*, const int32_t*,
        const int32_t*, const int32_t*, const int64_t*);
DECLARE(threshold, bf16*, const bf16*, int64_t, int64_t, const float*, const int32_t*,
        const int32_t*, const int32_t*, const int64_t*);
DECLARE(offset, void*, int64_t, int64_t, int64_t, const float*, const uint8_t*, const int32_t*,
        const float*, const int32_t*, const int32_t*, const int64_t*, int);
DECLARE(scale, void*, int64_t, int64_t, int64_t, const float*, const float*, const int32_t*,
        const uint8_t*, const int32_t*, const float*, const int32_t*, const int32_t*,
        const int64_t*, int);
DECLARE(sparse_delta, void*, int64_t, int64_t, int64_t, const bf16*, int64_t, const void*,
        const int32_t*, const float*, const int32_t*, const int32_t*, const int64_t*, int);
DECLARE(row_delta, float*, int64_t, const bf16*, int64_t, const void*, const int32_t*, const float*,
        const int32_t*, const int32_t*, const int64_t*);
DECLARE(sparse_mlp, bf16*, bf16*, const bf16*, int64_t, int64_t, int64_t, const bf16*, const bf16*,
        const bf16*, const bf16*, const bf16*, const float*, const int32_t*, const int32_t*,
        const int32_t*, const int64_t*, int, int, float);
DECLARE(rotate, bf16*, const bf16*, int64_t, int64_t, const void*, const int32_t*, const float*,
        const int32_t*, const int32_t*, const int64_t*);
#undef DECLARE

namespace {

constexpr int kMaxArguments = 19;

struct Call {
  int64_t kernel;                   // index in graph.py's KERNELS
  int64_t arguments[kMaxArguments];  // pointers and integers as they are, floats by their bits
};

struct Argument {
  int64_t bits;
  template <typename T>
  operator T*() const {
    return reinterpret_cast<T*>(bits);
  }
  operator int64_t() const { return bits; }
  operator int() const { return static_cast<int>(bits); }
  operator float() const {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
};

template <typename... Parameters, size_t... I>
void invoke(void (*kernel)(Parameters...), const int64_t* a, std::index_sequence<I...>) {
  kernel(static_cast<Parameters>(Argument{a[I]})...);
}

template <typename... Parameters>
void invoke(void (*kernel)(Parameters...), const int64_t* a) {
  invoke(kernel, a, std::index_sequence_for<Parameters...>{});
}

}  // namespace

TURRET_API void turret_run(const Call* calls, int64_t count) {
  for (const Call* call = calls; call < calls + count; ++call) {
    const int64_t* a = call->arguments;
    switch (call->kernel) {
      case 0: invoke(turret_linear, a); break;
      case 1: invoke(turret_low_rank, a); break;
      case 2: invoke(turret_rope_and_store, a); break;
      case 3: invoke(turret_paged_attention, a); break;
      case 4: invoke(turret_rms_norm, a); break;
      case 5: invoke(turret_act_mul, a); break;
      case 6: invoke(turret_act_threshold_mul, a); break;
      case 7: invoke(turret_threshold, a); break;
      case 8: invoke(turret_offset, a); break;
      case 9: invoke(turret_scale, a); break;
      case 10: invoke(turret_sparse_delta, a); break;
      case 11: invoke(turret_row_delta, a); break;
      case 12: invoke(turret_sparse_mlp, a); break;
      case 13: invoke(turret_rotate, a); break;
      case 14: invoke(turret_linear_int8, a); break;
    }
  }
}
