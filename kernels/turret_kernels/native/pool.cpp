#include "pool.h"

#include <immintrin.h>
#include <sched.h>

#include <thread>

namespace turret {

namespace {
constexpr uint64_t kExhausted = 0xFFFFFFFFu;
// About 100 us: longer than the gap between two kernels, shorter than the gap between requests.
constexpr int kSpins = 4000;
}  // namespace

Pool& Pool::get() {
  static Pool* pool = new Pool;  // never destroyed: helpers may outlive static destructors
  return *pool;
}

void Pool::resize(int threads) {
  threads_ = threads < 1 ? 1 : threads;
  for (; helpers_ < threads_ - 1; ++helpers_) std::thread([this] { loop(); }).detach();
}

void Pool::run_erased(int64_t chunks, Call call, const void* body) {
  const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  const uint64_t ticket = static_cast<uint64_t>(generation) << 32;
  ticket_.store(ticket | kExhausted);  // nobody claims while the job changes
  call_ = call;
  body_ = body;
  chunks_ = static_cast<uint32_t>(chunks);
  done_.store(0);
  ticket_.store(ticket);
  generation_.store(generation);
  if (sleeping_.load() > 0) generation_.notify_all();
  help(generation);
  for (int spins = 0; done_.load(std::memory_order_acquire) < chunks_; ++spins) {
    _mm_pause();
    if (spins > kSpins) sched_yield();  // a helper lost its core inside a chunk
  }
}

void Pool::help(uint32_t generation) {
  const Call call = call_;
  const void* body = body_;
  const uint32_t chunks = chunks_;
  uint64_t ticket = ticket_.load();
  while (ticket >> 32 == generation && (ticket & kExhausted) < chunks) {
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
    call(body, static_cast<int64_t>(ticket & kExhausted));
    done_.fetch_add(1, std::memory_order_release);
    ticket = ticket_.load();
  }
}

void Pool::loop() {
  uint32_t seen = generation_.load();
  for (;;) {
    int spins = 0;
    uint32_t now;
    while ((now = generation_.load(std::memory_order_acquire)) == seen) {
      _mm_pause();
      if (++spins > kSpins) {
        sleeping_.fetch_add(1);
        generation_.wait(seen);
        sleeping_.fetch_sub(1);
        spins = 0;
      }
    }
    seen = now;
    help(seen);
  }
}

}  // namespace turret

extern "C" __attribute__((visibility("default"))) void turret_set_threads(int threads) {
  turret::Pool::get().resize(threads);
}
