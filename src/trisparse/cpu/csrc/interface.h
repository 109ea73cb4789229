// The plain C interface of the kernels: what Python fills in, and what each instruction set exports.
#pragma once
#include <cstdint>

namespace trisparse {

// Raised with every change of the structures below; Python refuses a library that says another number.
constexpr uint32_t kInterfaceVersion = 2;

enum DataType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A tensor [batch, row, head, feature] whose features are contiguous; strides in elements. Null data: not
// given.
struct Tensor {
  void* data;
  int64_t batch_stride, row_stride, head_stride;
};

// One branch. Forward reads key and value, writes out and log_sum_exp (natural); backward reads all four.
struct Branch {
  Tensor key, value;
  Tensor out;          // query's data type; may be null in a forward
  Tensor log_sum_exp;  // float, one feature per head; may be null in a forward
  Tensor grad_key, grad_value;
};

enum BranchIndex { kCompressed = 0, kSelected = 1, kWindow = 2, kBranches = 3 };

// A whole call. A branch takes part if its key is given. Letters as in the specification.
struct Problem {
  int32_t data_type;   // of query, keys, values, outputs, gradients
  int32_t gates_type;  // of gates and their gradient
  int64_t batch, query_rows, heads, groups, head_dim, value_dim;
  int64_t tokens, compressed;  // rows of raw and of compressed keys
  int64_t compress_block, compress_stride, select_block, num_selected, num_initial, num_local, window;
  double scale;
  int64_t query_start;
  int64_t num_documents;  // 0: every batch row is one sequence
  const int32_t* bounds;  // [num_documents + 1]
  Tensor query, gates, out, grad_out, grad_query, grad_gates;
  Tensor ids;  // int32 [batch, query_rows, groups, slots]: written, or read where `select` is 0
  int64_t slots;
  int32_t select;  // 1: choose ids from the compressed keys
  Branch branches[kBranches];
  // [batch]: a start for each batch row instead of query_start; null: none. A row that starts below 0 or ends
  // past the room of its keys takes no part.
  const int32_t* starts;
  int64_t window_ring;      // slots; the window's key at position s lies in slot s % window_ring. 0: at s
  Tensor query_compressed;  // what the compressed branch takes for query; null: query
  int32_t invariant;        // 1: a row's bits may not depend on how many rows came with it
};

enum Status : int32_t { kOk = 0, kOutOfMemory = 1, kInvalid = 2, kFailed = 3 };

// torch's thread pool, through its stable C interface
using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, RangeFunction, void* context);
using GetNumThreads = int32_t (*)(uint32_t* count);

struct ThreadPool {
  ParallelFor parallel_for;
  GetNumThreads get_num_threads;
};

// What one instruction set offers. Each lives in a source file of its own, compiled with its own flags.
struct Kernels {
  const char* name;
  bool (*takes)(int32_t data_type);
  int32_t (*forward)(const Problem&, const ThreadPool&);
  int32_t (*backward)(const Problem&, const ThreadPool&);
};

}  // namespace trisparse
