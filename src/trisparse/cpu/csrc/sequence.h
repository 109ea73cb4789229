// The independent pieces of a call: one document and one KV group of one batch row.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "interface.h"
#include "matrices.h"
#include "number.h"

namespace trisparse::TRISPARSE_SET {

// Sizes that all pieces share
struct Shape {
  explicit Shape(const Problem& p)
      : heads(int(p.heads / p.groups)),
        head_dim(int(p.head_dim)),
        value_dim(int(p.value_dim)),
        head_depth(int(round_up(p.head_dim, kDepthUnit))),
        value_depth(int(round_up(p.value_dim, kDepthUnit))),
        scale(float(p.scale)),
        multiplier(float(p.scale * 1.4426950408889634)) {}

  int heads;  // of one group
  int head_dim, value_dim;
  int head_depth, value_depth;  // the same, padded
  float scale;                  // of q.k
  float multiplier;             // the same, for powers of 2
};

struct Sequence {
  int64_t batch, group;
  int64_t first_row, rows;      // of the query
  int64_t start;                // position of the first row
  int64_t first_token, tokens;  // tokens past the last row are left out: they cannot matter
  int64_t first_block, blocks;  // compressed blocks, those no row sees left out
};

// complete compressed blocks among the first `tokens` (spec 1)
inline int64_t num_compressed(const Problem& p, int64_t tokens) {
  return tokens < p.compress_block ? 0 : (tokens - p.compress_block) / p.compress_stride + 1;
}

// Have the keys of a call room for a batch row of `tokens` tokens?
inline bool has_room(const Problem& p, int64_t tokens) {
  const bool by_position =
      p.branches[kSelected].key.data || (p.branches[kWindow].key.data && p.window_ring == 0);
  if (by_position && tokens > p.tokens) return false;
  return !p.branches[kCompressed].key.data || num_compressed(p, tokens) <= p.compressed;
}

// Where the rows of a batch row start; so far below 0 that they see no key and have no block if it takes no
// part
inline int64_t start_of(const Problem& p, int64_t batch) {
  if (!p.starts) return p.query_start;
  const int64_t start = p.starts[batch];
  return start >= 0 && has_room(p, start + p.query_rows) ? start : -p.query_rows - p.select_block;
}

// One for each batch row and group, those that take no part included
inline std::vector<Sequence> batch_rows_of(const Problem& p) {
  std::vector<Sequence> found;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    const int64_t start = start_of(p, batch), tokens = std::max<int64_t>(0, start + p.query_rows);
    for (int64_t group = 0; group < p.groups; ++group) {
      found.push_back({batch, group, 0, p.query_rows, start, 0, tokens, 0, num_compressed(p, tokens)});
    }
  }
  return found;
}

inline std::vector<Sequence> sequences_of(const Problem& p) {
  if (p.num_documents == 0) return batch_rows_of(p);
  std::vector<Sequence> found;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    int64_t first_block = 0;
    for (int64_t document = 0; document < p.num_documents; ++document) {
      const int64_t begin = p.bounds[document], end = p.bounds[document + 1];
      const int64_t first = std::max(begin, p.query_start);
      const int64_t last = std::min(end, p.query_start + p.query_rows);
      if (first < last) {
        for (int64_t group = 0; group < p.groups; ++group) {
          found.push_back({batch, group, first - p.query_start, last - first, first - begin, begin,
                           last - begin, first_block, num_compressed(p, last - begin)});
        }
      }
      first_block += num_compressed(p, end - begin);
    }
  }
  return found;
}

// Where feature 0 of a row of a tensor [batch, row, head, feature] lies, in elements
inline int64_t offset_of(const Tensor& tensor, int64_t batch, int64_t row, int64_t head) {
  return batch * tensor.batch_stride + row * tensor.row_stride + head * tensor.head_stride;
}

// Its address in a tensor of data type `type`
inline void* row_of(const Tensor& tensor, int32_t type, int64_t batch, int64_t row, int64_t head) {
  return static_cast<char*>(tensor.data) + offset_of(tensor, batch, row, head) * size_of(type);
}

// The ids of a token
inline int32_t* ids_of(const Problem& p, const Sequence& sequence, int64_t token) {
  const int64_t offset = offset_of(p.ids, sequence.batch, sequence.first_row + token, sequence.group);
  return static_cast<int32_t*>(p.ids.data) + offset;
}

}  // namespace trisparse::TRISPARSE_SET
