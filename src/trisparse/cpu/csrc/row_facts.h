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

inline float dot(const float* a, const float* b, int64_t count) {
  Floats sums{};
  int64_t index = 0;
  for (; index + kLanes <= count; index += kLanes) sums += load(a + index) * load(b + index);
  float rest = 0.0f;
  for (; index < count; ++index) rest += a[index] * b[index];
  return sum(sums) + rest;
}

// Reads log-sum-exp and gate, computes delta, writes the gate's gradient out . grad_out. `first`: the facts'
// index of the chunk's row 0.
template <class Engine>
inline void collect_facts(const Problem& p, const ChunkRows& rows, int branch, int64_t first,
                          const RowFacts& facts) {
  const Branch& tensors = p.branches[branch];
  std::vector<float> out(size_t(p.value_dim)), grad(size_t(p.value_dim));
  for (int64_t row = 0; row < rows.count(); ++row) {
    read_numbers(rows.in(tensors.out, p.data_type, row), p.data_type, p.value_dim, out.data());
    read_numbers(rows.in(p.grad_out, p.data_type, row), p.data_type, p.value_dim, grad.data());
    const float product = dot(out.data(), grad.data(), p.value_dim);
    const float lse =
        static_cast<const float*>(tensors.log_sum_exp.data)[rows.offset(tensors.log_sum_exp, row)];
    const float gate = p.gates.data ? gate_of(p, rows, row, branch) : 1.0f;
    facts.log_sum_exp[first + row] = lse == -kInfinity ? kInfinity : Exponent<Engine>::from_natural(lse);
    facts.delta[first + row] = gate * product;
    facts.gate[first + row] = gate;
    if (p.grad_gates.data) {
      char* gates = static_cast<char*>(rows.in(p.grad_gates, p.gates_type, row));
      write_numbers(&product, 1.0f, 1, p.gates_type, gates + branch * size_of(p.gates_type));
    }
  }
}

}  // namespace trisparse::TRISPARSE_SET
