// The forward of a call: pack keys and values, then chunk by chunk all its branches.
#pragma once
#include "call.h"
#include "output.h"
#include "selected.h"
#include "window.h"

namespace trisparse::TRISPARSE_SET {

// One thread's memory, and the forward of one chunk in it
template <class Engine>
class ForwardWorker {
 public:
  using Element = typename Engine::Element;

  ForwardWorker(const Call<Engine>& call, const PackedCall<Engine>& packed)
      : call_(call),
        packed_(packed),
        compressed_(call.problem, call.order),
        selected_(call.problem, call.shape),
        query_(call.most_rows() * call.shape.head_depth),
        reference_(call.most_rows()),
        total_(call.most_rows() * kLanes),
        sums_(call.most_rows() * call.shape.value_depth),
        limits_(2 * call.most_rows()) {
    state_ = {reference_.get(), total_.get(), sums_.get(), call.shape.value_depth, low(), high()};
  }

  // Adds the branches `first` .. `last` of a chunk to `whole` [most_rows][value_depth]
  void attend(const Chunk& chunk, int first, int last, float* whole) {
    const ChunkRows rows = call_.rows(chunk);
    const Tensor* staged = nullptr;
    for (int branch = first; branch <= last; ++branch) {
      if (!call_.has(branch)) continue;
      const Tensor& query = query_of(call_.problem, branch);
      if (&query != staged) {
        stage_chunk<Engine>(query, call_.problem.data_type, rows, call_.shape.head_dim,
                            call_.shape.head_depth, query_.get());
        staged = &query;
      }
      state_.reset(round_up(rows.count(), kPairRows));
      attend_branch(branch, rows);
      finish_branch<Engine>(call_.problem, call_.shape, rows, branch, state_, whole);
    }
    if (call_.problem.out.data && last == kWindow) write_whole(call_.problem, call_.shape, rows, whole);
  }

 private:
  int32_t* low() const { return limits_.get(); }
  int32_t* high() const { return limits_.get() + call_.most_rows(); }

  void attend_branch(int branch, const ChunkRows& rows) {
    fill_limits(call_.problem, branch, rows, low(), high());
    if (branch == kCompressed) {
      const bool with_values = call_.problem.branches[kCompressed].value.data != nullptr;
      compressed_.attend(call_.shape, rows, packed_.compressed, query_.get(), state_, with_values);
    } else if (branch == kSelected) {
      selected_.attend(call_.shape, rows, packed_.selected, query_.get(), state_);
    } else {
      window_.attend(call_.shape, rows, packed_.window(), query_.get(), state_);
    }
  }

  typename Engine::Session session_;
  const Call<Engine>& call_;
  const PackedCall<Engine>& packed_;
  CompressedForward<Engine> compressed_;
  SelectedForward<Engine> selected_;
  WindowForward<Engine> window_;
  Buffer<Element> query_;
  Buffer<float> reference_, total_, sums_;
  Buffer<int32_t> limits_;
  SoftmaxRows state_;
};

// Chunks in parallel, branches `first` .. `last`. The sums of all chunks are kept where another pass will add
// to them.
template <class Engine>
Status forward_pass(const Call<Engine>& call, const PackedCall<Engine>& packed, int first, int last,
                    const Buffer<float>* kept) {
  const int64_t size = call.most_rows() * call.shape.value_depth;
  struct Worker {
    ForwardWorker<Engine> forward;
    Buffer<float> whole;
  };
  const auto make_worker = [&] { return Worker{{call, packed}, Buffer<float>(kept ? 0 : size)}; };
  const auto attend = [&](Worker& worker, int64_t task) {
    float* whole = kept ? kept->get() + task * size : worker.whole.get();
    if (first == kCompressed) std::fill(whole, whole + size, 0.0f);
    worker.forward.attend(call.chunks[size_t(task)], first, last, whole);
  };
  const int64_t tasks = int64_t(call.chunks.size());
  return run_tasks(call.pool, tasks, call.threads(tasks), make_worker, attend);
}

template <class Engine>
Status forward(const Problem& p, const ThreadPool& pool) {
  const Call<Engine> call(p, pool);
  PackedCall<Engine> packed(p, call.sequences, call.order);
  Status status = pack_compressed(call, kForwardForms, packed);
  if (status != kOk) return status;
  const bool few = call.has(kSelected) && few_rows(p, call.sequences);
  if (!few || !p.select) {
    status = pack_tokens(call, kForwardForms, few, packed);
    return status == kOk ? forward_pass(call, packed, kCompressed, kWindow, nullptr) : status;
  }
  // few rows, as in decoding: select first, then pack what was selected
  const Buffer<float> whole(int64_t(call.chunks.size()) * call.most_rows() * call.shape.value_depth);
  status = forward_pass(call, packed, kCompressed, kCompressed, &whole);
  if (status == kOk) status = pack_tokens(call, kForwardForms, true, packed);
  return status == kOk ? forward_pass(call, packed, kSelected, kWindow, &whole) : status;
}

}  // namespace trisparse::TRISPARSE_SET
