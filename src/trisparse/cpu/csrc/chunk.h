// A chunk: neighbouring tokens of one sequence with all heads of the group, the unit of query-side work.
#pragma once
#include "buffer.h"
#include "pack.h"
#include "sequence.h"
#include "softmax.h"

namespace trisparse::TRISPARSE_SET {

struct Chunk {
  int64_t sequence;     // its index
  int64_t first_token;  // of the sequence's rows
  int tokens;

  int64_t position(const Sequence& s) const { return s.start + first_token; }
};

// Enough rows that a selected block serves several of them, few enough that their sums stay in the
// second-level cache
constexpr int64_t kChunkRows = 1024;

// All chunks of a call, those with most keys before them first: the last tasks are then the shortest
inline std::vector<Chunk> chunks_of(const Problem& p, const std::vector<Sequence>& sequences,
                                    int64_t threads) {
  const int64_t heads = p.heads / p.groups;
  const int64_t all_rows = p.batch * p.groups * p.query_rows * heads;
  // a short call is cut finer, so that every thread has some; no row's result depends on the cut
  const int64_t fair = round_up(all_rows / (4 * std::max<int64_t>(1, threads)) + 1, kPairRows);
  const int64_t tokens = std::max<int64_t>(1, std::min(kChunkRows, fair) / heads);
  std::vector<Chunk> chunks;
  std::vector<int64_t> positions;
  for (size_t index = 0; index < sequences.size(); ++index) {
    for (int64_t token = 0; token < sequences[index].rows; token += tokens) {
      chunks.push_back({int64_t(index), token, int(std::min(tokens, sequences[index].rows - token))});
      positions.push_back(chunks.back().position(sequences[index]));
    }
  }
  return longest_first(chunks, positions);
}

// Where row r of a chunk stands: head r % heads of token r / heads
struct ChunkRows {
  const Sequence& sequence;
  const Chunk& chunk;
  int heads;

  int64_t count() const { return int64_t(chunk.tokens) * heads; }
  int64_t position(int64_t row) const { return chunk.position(sequence) + row / heads; }
  int64_t tensor_row(int64_t row) const { return sequence.first_row + chunk.first_token + row / heads; }
  int64_t tensor_head(int64_t row) const { return sequence.group * heads + row % heads; }

  int64_t offset(const Tensor& tensor, int64_t row) const {
    return offset_of(tensor, sequence.batch, tensor_row(row), tensor_head(row));
  }

  void* in(const Tensor& tensor, int32_t type, int64_t row) const {
    return row_of(tensor, type, sequence.batch, tensor_row(row), tensor_head(row));
  }
};

// The query of a branch
inline const Tensor& query_of(const Problem& p, int branch) {
  return branch == kCompressed && p.query_compressed.data ? p.query_compressed : p.query;
}

// Rows of a query-shaped tensor as left operand [rows, rounded up to 32][padded]
template <class Engine>
inline void stage_chunk(const Tensor& tensor, int32_t type, const ChunkRows& rows, int count, int padded,
                        typename Engine::Element* to) {
  // heads that lie side by side, without padding, are copied together
  const int together = tensor.head_stride == padded && count == padded ? rows.heads : 1;
  for (int64_t row = 0; row < rows.count(); row += together) {
    stage_row<Engine>(rows.in(tensor, type, row), type, together * count, together * padded,
                      to + row * padded);
  }
  const int64_t end = round_up(rows.count(), kPairRows);
  std::fill(to + rows.count() * padded, to + end * padded, typename Engine::Element(0));
}

}  // namespace trisparse::TRISPARSE_SET
