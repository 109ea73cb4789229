PYTHON ?= python3
BIN := .venv/bin
GPU_RESULTS ?= benchmarks/results/gpu
# of train-gpu
MINUTES ?= 9
# of bench-gpu
BENCH_MINUTES ?= 9
# most of a GPU test is the compilation of its kernels, by one core
WORKERS ?= 14
# files of tests/cpu that are about numbers, not about how kernels are built
CPU_NUMBERS = decode determinism fuzz huge_sizes instruction_sets memory_use selection_contract strides values
# of each half of the GPU tests; what is interrupted then still writes its report
GPU_SECONDS ?= 280
GPU_PYTEST = PYTHONPATH=src timeout -s INT $(GPU_SECONDS) $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup \
	-W default -k "gpu or triton" --durations 25

.PHONY: demo test check test-clang test-emulated sanitize clean
.PHONY: test-gpu rehearse-gpu bench-gpu generate-gpu tune-gpu train-gpu

# about ten minutes: trains, generates, measures and writes runs/demo/report.html
demo: .venv/run.stamp
	$(BIN)/trisparse demo

# the second run has Triton's kernels interpreted; they then cannot be compiled, as some tests of the first do
test: .venv/test.stamp
	$(BIN)/pytest
	TRITON_INTERPRET=1 $(BIN)/pytest tests/triton_interpreter

# format, lint, types; rewrites files where the formatter disagrees
check: .venv/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

# the CPU kernels as clang++ builds them
test-clang: .venv/test.stamp
	CXX=clang++ $(BIN)/pytest -k "cpu or fuzz" tests/cpu tests/test_*.py

# the CPU kernels with the sets for AMX and AVX-512 on any x86-64, their instructions emulated
test-emulated: .venv/test.stamp
	PYTHONPATH=tools/emulated_cpu $(BIN)/pytest -p emulated_cpu -k "cpu or fuzz" \
		$(CPU_NUMBERS:%=tests/cpu/test_%.py) tests/test_*.py

# the CPU kernels under AddressSanitizer, UBSan and, if it is installed, valgrind: a quarter of an hour, needs g++
sanitize: .venv/test.stamp
	$(BIN)/python tools/sanitize.py

# on a machine with a CUDA GPU, by its own Python with torch, Triton and pytest: nothing is installed.
# Its versions need not be ours, so that warnings are shown and end nothing. Where the checkout was copied without
# its history, TRISPARSE_COMMIT names the commit for the tables.
test-gpu:
	-PYTHONPATH=src $(PYTHON) tools/describe_gpu.py --output $(GPU_RESULTS)
	$(GPU_PYTEST) --junitxml $(GPU_RESULTS)/tests.xml tests/gpu; first=$$?; \
	$(GPU_PYTEST) --junitxml $(GPU_RESULTS)/tests_of_all.xml tests/test_*.py && exit $$first

# the same tests on a CPU, small, by the torch backend: shows that they run, nothing about a GPU
rehearse-gpu: .venv/test.stamp
	TRISPARSE_REHEARSE=1 $(BIN)/pytest tests/gpu

# ceilings, the whole op and its parts beside full attention, decode steps; ends within ten minutes: again, and it goes on where it ended
bench-gpu:
	PYTHONPATH=src $(PYTHON) tools/bench_gpu --minutes $(BENCH_MINUTES) --output $(GPU_RESULTS)

# tokens/s of a whole model of 136 million parameters with random weights, its steps captured in graphs
generate-gpu:
	PYTHONPATH=src $(PYTHON) -m trisparse bench generate --device cuda --lengths 1024,4096,16384,65536,131072 \
		--prefill-limit 131072 --chunk 131072 --output $(GPU_RESULTS)/generate.csv

# tiles beside those that are pinned, which it leaves as they are; ends within ten minutes: again, and it goes on
tune-gpu:
	PYTHONPATH=src $(PYTHON) tools/tune_gpu --output $(GPU_RESULTS)

# two models of 130 million parameters, with NSA and with full attention, in MINUTES minutes; rows and figure
train-gpu:
	PYTHONPATH=src $(PYTHON) tools/train_gpu --minutes $(MINUTES) --output $(GPU_RESULTS)

.venv/run.stamp: requirements/torch.txt requirements/run.txt pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) tools/make_venv.py .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/torch.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/run.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/test.stamp: .venv/run.stamp requirements/test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/test.txt
	touch $@

clean:
	rm -rf .venv runs
