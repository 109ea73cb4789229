// What a backward must know about each row and branch beside the row itself.
#pragma once
#include "chunk.h"
#include "output.h"

namespace trisparse::TRISPARSE_SET {

// [all rows of all sequences, one sequence after the other], for one branch
struct RowFacts {
  RowFacts() = default;
  explicit RowFacts(int64_t rows) : log_sum_exp(rows), delta(rows), gate(rows) {}

  Buffer<float> log_sum_exp;  // in the engine's units; +inf for an empty row, whose probabilities are then 0
  Buffer<float> delta;        // gate * (out . grad_out)
  Buffer<float> gate;         // 1 where the call has no gates
};

// Row 0 of each sequence, and the number of all rows
inline std::vector<int64_t> first_rows(const std::vector<Sequence>& sequences, int64_t heads) {
  std::vector<int64_t> first{0};
  for (const Sequence& sequence : sequences) first.push_back(first.back() + sequence.rows * heads);
  return first;
}

// Reads log-sum-exp and gate, computes delta, writes the gate's gradient out . grad_out. `first`: the facts' index of
// the chunk's row 0.
template <class Engine, class Number>
inline void collect_facts(const Problem& p, const ChunkRows& rows, int branch, int64_t first, const RowFacts& facts) {
  const Branch& tensors = p.branches[branch];
  for (int64_t row = 0; row < rows.count(); ++row) {
    const Number* out = rows.template in<const Number>(tensors.out, row);
    const Number* grad = rows.template in<const Number>(p.grad_out, row);
    float product = 0.0f;
    for (int64_t feature = 0; feature < p.value_dim; ++feature) product += to_float(out[feature]) * to_float(grad[feature]);
    const float lse = *rows.template in<const float>(tensors.log_sum_exp, row);
    const float gate = p.gates.data ? gate_of(p, rows, row, branch) : 1.0f;
    facts.log_sum_exp[first + row] = lse == -kInfinity ? kInfinity : Exponent<Engine>::from_natural(lse);
    facts.delta[first + row] = gate * product;
    facts.gate[first + row] = gate;
    if (p.grad_gates.data) {
      const int64_t offset = rows.sequence.batch * p.grad_gates.batch_stride +
                             rows.tensor_row(row) * p.grad_gates.row_stride +
                             rows.tensor_head(row) * p.grad_gates.head_stride + branch;
      write_number(p.grad_gates.data, offset, p.gates_type, product);
    }
  }
}

}  // namespace trisparse::TRISPARSE_SET
