// What leaves a chunk: a branch's output and log-sum-exp, and the gated sum of the branches (eq. 5).
#pragma once
#include "chunk.h"
#include "number.h"
#include "softmax.h"

namespace trisparse::TRISPARSE_SET {

// gate [batch, row, head, branch] of a row of a chunk
inline float gate_of(const Problem& p, const ChunkRows& rows, int64_t row, int branch) {
  float gate;
  const char* gates = static_cast<const char*>(rows.in(p.gates, p.gates_type, row));
  read_numbers(gates + branch * size_of(p.gates_type), p.gates_type, 1, &gate);
  return gate;
}

// Divides a branch's sums by their totals: output 0 and log-sum-exp -inf where nothing was seen. With gates,
// adds the gated output to `whole` [rows][value_depth].
template <class Engine>
inline void finish_branch(const Problem& p, const Shape& shape, const ChunkRows& rows, int index,
                          const SoftmaxRows& state, float* whole) {
  const Branch& branch = p.branches[index];
  for (int64_t row = 0; row < rows.count(); ++row) {
    const float total = sum(load(state.total + row * kLanes));
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const float* sums = state.sums + row * state.sums_stride;
    if (branch.log_sum_exp.data) {
      const float lse =
          total == 0.0f ? -kInfinity : Exponent<Engine>::log_sum_exp(state.reference[row], total);
      static_cast<float*>(branch.log_sum_exp.data)[rows.offset(branch.log_sum_exp, row)] = lse;
    }
    if (branch.out.data) {
      write_numbers(sums, inverse, shape.value_dim, p.data_type, rows.in(branch.out, p.data_type, row));
    }
    if (p.out.data) {
      const float gate = gate_of(p, rows, row, index);
      // takes a branch away even where it is infinite or NaN
      if (gate == 0.0f) continue;
      float* to = whole + row * shape.value_depth;
      // a product with inverse * gate would be one multiplication less, but 0 * inf where a branch saw
      // nothing
      for (int feature = 0; feature < shape.value_dim; ++feature)
        to[feature] += sums[feature] * inverse * gate;
    }
  }
}

inline void write_whole(const Problem& p, const Shape& shape, const ChunkRows& rows, const float* whole) {
  for (int64_t row = 0; row < rows.count(); ++row) {
    write_numbers(whole + row * shape.value_depth, 1.0f, shape.value_dim, p.data_type,
                  rows.in(p.out, p.data_type, row));
  }
}

}  // namespace trisparse::TRISPARSE_SET
