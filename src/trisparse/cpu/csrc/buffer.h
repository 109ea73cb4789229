// Memory aligned to cache lines, and freed with its owner.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace trisparse::TRISPARSE_SET {

constexpr size_t kCacheLine = 64;

inline int64_t round_up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

template <class Number>
class Buffer {
 public:
  Buffer() = default;

  explicit Buffer(int64_t count) {
    if (count <= 0) return;
    const size_t bytes = size_t(round_up(count * int64_t(sizeof(Number)), kCacheLine));
    data_ = static_cast<Number*>(std::aligned_alloc(kCacheLine, bytes));
    if (!data_) throw std::bad_alloc();
  }

  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}

  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }

  ~Buffer() { std::free(data_); }

  Number* get() const { return data_; }
  Number& operator[](int64_t index) const { return data_[index]; }

 private:
  Number* data_ = nullptr;
};

}  // namespace trisparse::TRISPARSE_SET
