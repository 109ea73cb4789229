// Memory aligned to cache lines, and freed with its owner.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace trisparse::TRISPARSE_SET {

constexpr size_t kCacheLine = 64;

inline int64_t round_up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

// For tests, with -DTRISPARSE_CANARIES: memory lies between two canaries, lines of a pattern, and the process
// ends when it is freed and one of them has changed
#if defined(TRISPARSE_CANARIES)
constexpr size_t kCanary = kCacheLine;
#else
constexpr size_t kCanary = 0;
#endif

template <class Number>
class Buffer {
 public:
  Buffer() = default;

  explicit Buffer(int64_t count) {
    if (count <= 0) return;
    bytes_ = size_t(count) * sizeof(Number);
    const size_t room = size_t(round_up(int64_t(bytes_ + 2 * kCanary), kCacheLine));
    char* memory = static_cast<char*>(std::aligned_alloc(kCacheLine, room));
    if (!memory) throw std::bad_alloc();
    data_ = reinterpret_cast<Number*>(memory + kCanary);
    std::memset(memory, kPattern, kCanary);
    std::memset(memory + kCanary + bytes_, kPattern, kCanary);
  }

  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  ~Buffer() {
    if (!data_) return;
    char* memory = reinterpret_cast<char*>(data_) - kCanary;
    for (size_t index = 0; index < kCanary; ++index) {
      if (memory[index] != kPattern || memory[kCanary + bytes_ + index] != kPattern) die();
    }
    std::free(memory);
  }

  Number* get() const { return data_; }
  Number& operator[](int64_t index) const { return data_[index]; }

 private:
  static constexpr char kPattern = 0x5a;

  [[noreturn]] static void die() {
    std::fputs("trisparse: something was written beyond the memory of a buffer\n", stderr);
    std::abort();
  }

  Number* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace trisparse::TRISPARSE_SET
