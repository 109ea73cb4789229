// Which calls are decoding: the forward of few rows behind others, for which packing would take the most time.
#pragma once
#include "interface.h"

namespace trisparse::TRISPARSE_SET {

// Rows of a sequence (tokens times heads), and tokens, each of which reads its own blocks, up to which this
// is faster than packing: three times at 8192 tokens and more; of 1024, 16 tokens take longer
constexpr int64_t kDecodeRows = 64;
constexpr int64_t kDecodeTokens = 16;

// A matter of one sequence's shape alone, so that the parts of a call and the whole agree on ids. A short
// sequence from its first token on is no decoding: it must get the bits that it gets as a packed document.
inline bool is_decoding(const Problem& p) {
  const int64_t rows = p.query_rows * (p.heads / p.groups);
  const bool few = p.query_rows == 1 || (rows <= kDecodeRows && p.query_rows <= kDecodeTokens);
  return few && p.query_rows > 0 && p.num_documents == 0 && (p.starts || p.query_start > 0) && !p.invariant;
}

}  // namespace trisparse::TRISPARSE_SET
