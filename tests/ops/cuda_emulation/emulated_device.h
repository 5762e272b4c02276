// The device functions of csrc/common/cuda/device.h on a CPU: the 32 lanes of a warp are coroutines that run in
// turn, each up to the next shuffle or barrier, so that the kernels run unchanged. Lanes that leave each other's
// control flow (a shuffle that some lanes skip) are found: all must pass the same number of meeting points.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <type_traits>

#define TOKENDETR_DEVICE inline
#define __grid_constant__

namespace tokendetr::cuda {

class Warp {
 public:
  static constexpr int kLanes = 32;

  // Runs body(lane) for all lanes, switching at meet().
  static void run(const std::function<void(int)>& body) {
    Warp warp(body);
    current_ = &warp;
    for (int lane = 0; lane < kLanes; ++lane) {
      Lane& own = warp.lanes_[lane];
      getcontext(&own.context);
      own.stack.reset(new char[kStack]);
      own.context.uc_stack.ss_sp = own.stack.get();
      own.context.uc_stack.ss_size = kStack;
      own.context.uc_link = nullptr;
      makecontext(&own.context, enter, 0);
    }
    if (_setjmp(warp.caller_) == 0) warp.resume(0);
    current_ = nullptr;
  }

  // Returns once all lanes got here.
  static void meet() {
    Warp& warp = *current_;
    ++warp.lanes_[warp.lane_].meetings;
    warp.leave();
  }

  // The value that lane `lane ^ mask` brings.
  template <class T>
  static T exchange(T value, int mask) {
    Warp& warp = *current_;
    const int lane = warp.lane_;
    auto& slots = warp.slots_[warp.lanes_[lane].meetings % 2];
    std::memcpy(slots[lane], &value, sizeof(T));
    meet();
    T other;
    std::memcpy(&other, slots[lane ^ mask], sizeof(T));
    return other;
  }

 private:
  struct Lane {
    ucontext_t context;  // to begin with; then `place`, which needs no system call
    jmp_buf place;
    bool begun = false;
    std::unique_ptr<char[]> stack;
    long meetings = 0;
    bool done = false;
  };

  explicit Warp(const std::function<void(int)>& body) : body_(body), lanes_(new Lane[kLanes]) {}

  static void enter() {
    Warp& warp = *current_;
    warp.body_(warp.lane_);
    warp.lanes_[warp.lane_].done = true;
    warp.leave();
  }

  void leave() {
    const int from = lane_;
    lane_ = (lane_ + 1) % kLanes;
    if (lane_ == 0) check_that_all_are_level();
    if (_setjmp(lanes_[from].place) != 0) return;
    if (from == kLanes - 1 && lanes_[from].done) _longjmp(caller_, 1);
    resume(lane_);
  }

  void resume(int lane) {
    Lane& to = lanes_[lane];
    if (to.begun) _longjmp(to.place, 1);
    to.begun = true;
    setcontext(&to.context);
  }

  void check_that_all_are_level() const {
    for (int lane = 1; lane < kLanes; ++lane) {
      if (lanes_[lane].meetings != lanes_[0].meetings || lanes_[lane].done != lanes_[0].done) {
        std::fprintf(stderr, "lane %d has left the control flow of lane 0\n", lane);
        std::abort();
      }
    }
  }

  static constexpr size_t kStack = 1 << 16;
  static inline thread_local Warp* current_ = nullptr;
  const std::function<void(int)>& body_;
  std::unique_ptr<Lane[]> lanes_;
  jmp_buf caller_;
  int lane_ = 0;
  char slots_[2][kLanes][16];
};

template <class T>
T shuffle_xor(T x, int mask) {
  return Warp::exchange(x, mask);
}
inline void sync_warp() { Warp::meet(); }

template <class T>
T exponential(T x) {
  return std::exp(x);
}
template <class T>
T round_down(T x) {
  return std::floor(x);
}

template <int kVector, class S>
Packed<S, kVector> load(const S* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Packed<S, kVector>) != 0) {
    std::fprintf(stderr, "load of %zu bytes from %p is not aligned\n", sizeof(Packed<S, kVector>),
                 static_cast<const void*>(from));
    std::abort();
  }
  return *reinterpret_cast<const Packed<S, kVector>*>(from);
}

template <int kVector, class S>
void store_packed(S* to, const Packed<S, kVector>& packed) {
  *reinterpret_cast<Packed<S, kVector>*>(to) = packed;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}
inline float widen(Half x) {
  const float sign = (x.bits & 0x8000) != 0 ? -1.0f : 1.0f;
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  if (exponent == 31) return mantissa != 0 ? std::nanf("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}
template <class S>
void widen_pair(const S* pair, float* to) {
  to[0] = widen(pair[0]);
  to[1] = widen(pair[1]);
}

inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }
inline void narrow(float x, BFloat& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  to.bits = static_cast<uint16_t>(std::isnan(x) ? 0x7fff : rounded >> 16);
}
inline void narrow(float x, Half& to) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (std::isnan(x)) {
    to.bits = 0x7fff;
  } else if (size >= 65520.0f) {
    to.bits = sign | 0x7c00;
  } else if (size < std::ldexp(1.0f, -14)) {
    to.bits = static_cast<uint16_t>(sign + std::lrint(std::ldexp(size, 24)));
  } else {
    int exponent;
    const float fraction = std::frexp(size, &exponent);  // in [0.5, 1)
    const long mantissa = std::lrint(std::ldexp(fraction, 11)) - 1024;
    to.bits = static_cast<uint16_t>(sign + ((exponent + 14) << 10) + mantissa);  // a carry raises the exponent
  }
}

template <int kVector, class T>
void add(T* to, const T (&vector)[kVector]) {
  for (int i = 0; i < kVector; ++i) to[i] += vector[i];
}

}  // namespace tokendetr::cuda
