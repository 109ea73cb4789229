"""Work is handed out longest first, so that no thread ends long after the others."""

import subprocess

from .standin import Program

# ends with the line of what is wrong
ORDER = """
#include "engine_float.h"
#include "chunk.h"
#include "workers.h"
using namespace trisparse;
using namespace trisparse::toy;
#define CHECK(what) \\
  if (!(what)) return __LINE__

int main() {
  // as many that are equal as make a sort that is not stable mix them up
  std::vector<int> tasks;
  std::vector<int64_t> work;
  for (int task = 0; task < 100; ++task) {
    tasks.push_back(task);
    work.push_back(task % 3);
  }
  const std::vector<int> sorted = longest_first(tasks, work);
  CHECK(sorted.size() == tasks.size());
  for (size_t index = 1; index < sorted.size(); ++index) {
    const int before = sorted[index - 1], after = sorted[index];
    CHECK(before % 3 > after % 3 || (before % 3 == after % 3 && before < after));
  }

  Problem p{};
  p.batch = 3, p.groups = 2, p.heads = 8, p.query_rows = 1000, p.query_start = 7;
  p.compress_block = 32, p.compress_stride = 16, p.select_block = 64;
  const std::vector<Sequence> sequences = sequences_of(p);
  const std::vector<Chunk> chunks = chunks_of(p, sequences, 2);
  CHECK(chunks.size() > sequences.size());
  int64_t rows = 0;
  for (size_t index = 0; index < chunks.size(); ++index) {
    rows += chunks[index].tokens;
    if (index == 0) continue;
    const Chunk &before = chunks[index - 1], &after = chunks[index];
    CHECK(before.first_token > after.first_token ||
          (before.first_token == after.first_token && before.sequence < after.sequence));
  }
  CHECK(rows == p.query_rows * int64_t(sequences.size()));

  std::vector<int64_t> done;
  const auto note = [&](int, int64_t task) { done.push_back(task); };
  CHECK(run_tasks(ThreadPool{}, 50, 1, [] { return 0; }, note) == kOk);
  for (int64_t task = 0; task < 50; ++task) CHECK(done[size_t(task)] == task);
  return 0;
}
"""


def test_longest_tasks_come_first_and_equal_ones_in_the_order_given(program: Program):
    """Guards against a long task that one thread begins last, and an order that differs from run to run."""
    assert subprocess.run([program(ORDER)], check=False).returncode == 0
