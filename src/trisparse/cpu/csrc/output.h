// What leaves a chunk: a branch's output and log-sum-exp, and the gated sum of the branches (eq. 5).
#pragma once
#include "chunk.h"
#include "number.h"
#include "softmax.h"

namespace trisparse::TRISPARSE_SET {

inline float read_number(const void* data, int64_t index, int32_t type) {
  if (type == kFloat32) return static_cast<const float*>(data)[index];
  if (type == kBFloat16) return to_float(static_cast<const BFloat16*>(data)[index]);
  return to_float(static_cast<const Float16*>(data)[index]);
}

inline void write_number(void* data, int64_t index, int32_t type, float number) {
  if (type == kFloat32) {
    static_cast<float*>(data)[index] = number;
  } else if (type == kBFloat16) {
    from_float(number, static_cast<BFloat16*>(data)[index]);
  } else {
    from_float(number, static_cast<Float16*>(data)[index]);
  }
}

// gate [batch, row, head, branch] of a row of a chunk
inline float gate_of(const Problem& p, const ChunkRows& rows, int64_t row, int branch) {
  const int64_t offset = rows.sequence.batch * p.gates.batch_stride + rows.tensor_row(row) * p.gates.row_stride +
                         rows.tensor_head(row) * p.gates.head_stride + branch;
  return read_number(p.gates.data, offset, p.gates_type);
}

// Divides a branch's sums by their totals: output 0 and log-sum-exp -inf where nothing was seen. With gates, adds the
// gated output to `whole` [rows][value_depth].
template <class Engine, class Number>
inline void finish_branch(const Problem& p, const Shape& shape, const ChunkRows& rows, int index,
                          const SoftmaxRows& state, float* whole) {
  const Branch& branch = p.branches[index];
  for (int64_t row = 0; row < rows.count(); ++row) {
    const float total = sum(load(state.total + row * kLanes));
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const float* sums = state.sums + row * state.sums_stride;
    if (branch.log_sum_exp.data) {
      const float lse = total == 0.0f ? -kInfinity : Exponent<Engine>::log_sum_exp(state.reference[row], total);
      *rows.template in<float>(branch.log_sum_exp, row) = lse;
    }
    if (branch.out.data) {
      Number* out = rows.template in<Number>(branch.out, row);
      for (int feature = 0; feature < shape.value_dim; ++feature) from_float(sums[feature] * inverse, out[feature]);
    }
    if (p.out.data) {
      const float gate = gate_of(p, rows, row, index);
      float* to = whole + row * shape.value_depth;
      // a product with inverse * gate would be one multiplication less, but 0 * inf where a branch saw nothing
      for (int feature = 0; feature < shape.value_dim; ++feature) to[feature] += sums[feature] * inverse * gate;
    }
  }
}

template <class Number>
inline void write_whole(const Problem& p, const Shape& shape, const ChunkRows& rows, const float* whole) {
  for (int64_t row = 0; row < rows.count(); ++row) {
    Number* out = rows.template in<Number>(p.out, row);
    const float* from = whole + row * shape.value_depth;
    for (int feature = 0; feature < shape.value_dim; ++feature) from_float(from[feature], out[feature]);
  }
}

}  // namespace trisparse::TRISPARSE_SET
