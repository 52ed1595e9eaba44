// A parallel loop that does not wait for helpers, only for work.
//
// OpenMP's barrier needs every thread of the team. On a server whose cores also run the HTTP side,
// one helper without a core then costs a scheduler slice (8 ms measured on two cores) per loop.
// Here the caller and the helpers claim chunks from one counter, and the caller returns as soon as
// all chunks are done: a helper that never woke up is not missed.
#pragma once
#include <atomic>
#include <cstdint>

namespace turret {

class Pool {
 public:
  static Pool& get();
  void resize(int threads);  // including the caller; only between loops
  int threads() const { return threads_; }

  // Calls f(chunk) for 0 <= chunk < chunks. One caller at a time.
  template <typename F>
  void run(int64_t chunks, const F& f) {
    if (threads_ == 1 || chunks <= 1) {
      for (int64_t i = 0; i < chunks; ++i) f(i);
      return;
    }
    run_erased(chunks, [](const void* g, int64_t i) { (*static_cast<const F*>(g))(i); }, &f);
  }

 private:
  using Call = void (*)(const void*, int64_t);
  void run_erased(int64_t chunks, Call call, const void* body);
  void help(uint32_t generation);
  void loop();

  // The ticket holds (generation << 32 | next chunk): a helper that comes late finds another
  // generation, or no chunk left, and cannot claim.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<int> sleeping_{0};
  alignas(64) Call call_ = nullptr;
  const void* body_ = nullptr;
  uint32_t chunks_ = 0;
  int threads_ = 1, helpers_ = 0;
};

}  // namespace turret
