# GbCache. `make help` lists the targets; each sets up what it needs from nothing.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Not `python -m pytest`: that would put this directory, and so the normal build, before the others.
PYTEST := $(VENV)/bin/python $(VENV)/bin/pytest
JOBS ?= 2
# Of a suite, on two cores: a third of its time is waiting. One that has no more tests takes half of another's.
WORKERS ?= 3
# Hundreds of tests begin a process that imports the package: each would compile it anew.
unexport PYTHONDONTWRITEBYTECODE
SUITE := $(PYTEST) -n $(WORKERS) --dist worksteal tests
# What Cython writes.
CYTHONS := $(patsubst %,gbcache/%.c,_packed _object _disk flight forks groups locks notify subscribers watch writes)
SOURCES := $(filter-out $(CYTHONS),$(wildcard csrc/*.[ch] gbcache/_*.[ch] gbcache/*.py gbcache/*.p* setup.py pyproject.toml))
STRICT := -std=c11 -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror
SAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined
# A fork copies the tables of what ASan holds back: with 256 MB of that, its default, tests that fork take half as long again.
UNDER_ASAN = ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16 PYTHONMALLOC=malloc \
    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)"
# What the other builds of the C have no part in, or little for its time.
PYTHON_ALONE := --ignore-glob="tests/test_valkey*" --ignore-glob="tests/test_tier_*" --ignore=tests/test_forks_more.py --ignore=tests/test_memoize_shared.py --ignore=tests/test_dropped.py --ignore=tests/test_lru_cache.py --ignore=tests/test_bench.py --ignore-glob="tests/test_power*"
# The package lmdb switches the GIL on when it is imported: what needs it runs apart, and so; what is of the normal build does not.
OF_A_DISK := $(wildcard tests/test_disk*.py) tests/test_tier_disk.py
NOT_FREE := $(OF_A_DISK:%=--ignore=%) --ignore=tests/test_bench.py --ignore=tests/test_power_disk.py --ignore=tests/test_proof.py
FUZZ_SECONDS ?= 60
SEED ?= 1
KILLS ?= 2000
KILL_ROUNDS ?= 40
STATES ?= 100000
WRITES ?= 1000000
CUTS ?= 100
STORES ?= 500
DOWN ?= 10
STEPS ?= 200000
OPS ?= 1000000
STOPPED ?= 3
STRIDE ?= 12
MINUTES ?= 2
FUZZ_RUNS ?= 0
HAMMER ?= 2
STEP ?= 1
OPERATIONS ?= 10000000
FORKS ?= 1000
EXITS ?= 500
EXAMPLES ?= 10000

.NOTPARALLEL:
.PHONY: $(shell grep -oE '^[a-z][a-z-]*:' Makefile | tr -d :)

help: ## this list
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## /\1\t/' | expand -t 14

$(VENV)/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q "setuptools>=77" wheel "Cython>=3.1" msgpack lmdb redis pytest pytest-xdist hypothesis
	touch $@

# One package directory a build: the normal one must never load another's extension.
build/%/.made: $(SOURCES) | $(VENV)/.made
	rm -rf build/$* && mkdir -p build/$*
	$(BUILD_ENV) $(PY) setup.py -q build --build-base build/$*-base --build-lib build/$* --build-temp build/$*-temp
	touch $@

build/tiny/.made: BUILD_ENV = GB_TINY=1 GB_WERROR=1 GB_CFLAGS=-O1
build/silent/.made: BUILD_ENV = GB_CFLAGS="-DGB_SILENT"
build/asan/.made: BUILD_ENV = GB_CFLAGS="$(SAN) -O1 -DGB_DEBUG=2" GB_LDFLAGS="$(SAN)"

build/.inplace: $(SOURCES) | $(VENV)/.made
	mkdir -p build
	GB_WERROR=1 $(PY) setup.py -q build_ext --inplace --build-temp build/inplace
	touch $@

build: build/.inplace ## the extension, in place

demo: build ## replay a real trace through a cache and watch it
	$(PY) -m gbcache demo

test: build ## every test, in the normal build
	PYTHONPATH=. GB_EXPECT=normal $(SUITE)

native: build ## the C tests alone, normal and tiny, under ASan and UBSan
	PYTHONPATH=. $(PYTEST) tests/test_native.py

tiny: build/tiny/.made ## the Python tests where every constant is small
	PYTHONPATH=build/tiny GB_EXPECT=tiny GB_SLICE=short $(SUITE) $(PYTHON_ALONE) \
	    --ignore=tests/test_native.py --ignore=tests/test_architecture.py

asan: build/asan/.made ## the Python tests under AddressSanitizer and UBSan
	PYTHONPATH=build/asan GB_EXPECT=asan GB_SLICE=short $(UNDER_ASAN) \
	    $(SUITE) --ignore=tests/test_native.py --ignore=tests/test_architecture.py $(PYTHON_ALONE)

drift: build ## references every call leaves behind, under a debug interpreter (Debian)
	$(PY) tests/drift.py

proof: build ## all parts of the proof but suites, coverage and mcdc, and one table: build/proof/table.md (under 40 minutes)
	PYTHONPATH=. $(PY) tests/proof/table.py --seed $(SEED)

proof-long: build ## the same at full length: hours
	PYTHONPATH=. $(PY) tests/proof/table.py --long --seed $(SEED)

proof-kill: build ## a live file's writers killed KILLS times, and before any store of the core (KILL_ROUNDS)
	PYTHONPATH=. $(PY) tests/proof/kill.py --kills $(KILLS) --seed $(SEED)
	PYTHONPATH=. $(PY) tests/proof/kill_stores.py --rounds $(KILL_ROUNDS) --seed $(SEED)

proof-power: build ## what a power cut may leave: STATES states of files, half as many of a Disk
	PYTHONPATH=. $(PY) tests/proof/power.py --states $(STATES) --seed $(SEED)
	PYTHONPATH=. $(PY) tests/proof/power_disk.py --states $$(($(STATES) / 2)) --seed $(SEED)

proof-corrupt: build/asan/.made ## every bit flip and truncation of a snapshot, under ASan and UBSan
	PYTHONPATH=build/asan $(UNDER_ASAN) $(PY) tests/proof/corrupt.py --seed $(SEED)

proof-disk: build ## a Disk's writers killed KILLS times, and STORES damaged stores
	PYTHONPATH=. $(PY) tests/proof/disk_kill.py --kills $(KILLS) --seed $(SEED)
	PYTHONPATH=. $(PY) tests/proof/disk_damage.py --stores $(STORES) --seed $(SEED)

proof-threads: build build/tsan/.made build/python3.13t-tsan/bin/python3.13t ## ThreadSanitizer: the core, and HAMMER seconds of each test without the GIL (its interpreters, first: 25 minutes on one busy core)
	PYTHONPATH=. $(PY) tests/proof/threads.py --seed $(SEED) --rounds 20000 --seconds $(HAMMER) --build build/tsan \
	    --python build/python3.13t-tsan/bin/python3.13t --packages .venv-free/lib/python3.13t/site-packages

proof-stale: build ## a copy behind its Valkey server: WRITES watched, CUTS of the channel, DOWN seconds without a server
	PYTHONPATH=. $(PY) tests/proof/valkey_stale.py --writes $(WRITES) --cuts $(CUTS) --down $(DOWN) --seed $(SEED)

python-free: build/python3.13t/bin/python3.13t ## a free-threaded CPython 3.13, of Debian's source (4 minutes; 9 on one busy core)
build/python3.13t/bin/python3.13t:
	sh tests/free/python.sh build/python3.13t

# Of hypothesis the last without Rust; lmdb without cffi, which wants 3.14.
.venv-free/.made: | build/python3.13t/bin/python3.13t
	build/python3.13t/bin/python3.13t -m venv .venv-free
	.venv-free/bin/python -m pip install -q "setuptools>=77" wheel "Cython>=3.1" msgpack redis pytest "hypothesis<6.140"
	LMDB_FORCE_CPYTHON=1 .venv-free/bin/python -m pip install -q --no-build-isolation --no-deps lmdb
	touch $@

build/free/.made build/tsan/.made: PY = .venv-free/bin/python
build/free/.made build/tsan/.made: | .venv-free/.made
build/tsan/.made: BUILD_ENV = GB_CFLAGS="-fsanitize=thread -O1 -fno-omit-frame-pointer" GB_LDFLAGS="-fsanitize=thread"

build/python3.13t-tsan/bin/python3.13t:
	sh tests/free/python.sh build/python3.13t-tsan --with-thread-sanitizer

IN_FREE = PYTHONPATH=$(CURDIR)/build/free PYTHONSAFEPATH=1 GB_SLICE=short
free: build/free/.made ## the Python tests on an interpreter without the GIL; those of a Disk with it, as its package has it
	$(IN_FREE) GB_EXPECT=free .venv-free/bin/python .venv-free/bin/pytest tests $(NOT_FREE) \
	    --ignore=tests/test_native.py --ignore=tests/test_architecture.py
	$(IN_FREE) .venv-free/bin/python .venv-free/bin/pytest $(OF_A_DISK)

proof-model: build ## EXAMPLES runs of 100 operations of each class against models, all looked at after each; keys made to collide
	PYTHONPATH=. $(PY) tests/proof/model.py --examples $(EXAMPLES) --seed $(SEED)

proof-suites: build ## the whole suite in each build and under each Python (SUITES="--only free")
	PYTHONPATH=. $(PY) tests/proof/suites.py $(SUITES)

proof-io: build ## every call that touches a file fails, in every way; and disks that are full
	PYTHONPATH=. $(PY) tests/proof/io_faults.py --stride $(STRIDE)

proof-budget: build build/tiny/.made ## the budget after each of STEPS operations, and what the process grows by
	PYTHONPATH=. $(PY) tests/proof/budget.py --steps $(STEPS) --seed $(SEED)
	PYTHONPATH=build/tiny $(PY) tests/proof/budget.py --steps $(STEPS) --seed $(SEED) --accounts

proof-events: build ## OPS operations of many threads, told once each and in order, by every kind of reader
	PYTHONPATH=. $(PY) tests/proof/events.py --ops $(OPS) --seed $(SEED)

proof-clock: build ## clocks that jump, stand still or go back, and a process stopped for STOPPED seconds
	PYTHONPATH=. $(PY) tests/proof/clock.py --stopped $(STOPPED) --seed $(SEED)

proof-fuzz: $(VENV)/.made ## every fuzz target: FUZZ_SECONDS for all, or FUZZ_RUNS of each in each variant
	$(PY) tests/fuzz/run.py --seconds $(FUZZ_SECONDS) --runs $(FUZZ_RUNS) --seed $(SEED)

proof-soak: build ## MINUTES of mixed work of 8 threads, a child killed each minute: no growth, no error, no slower end
	PYTHONPATH=. $(PY) tests/proof/soak.py --minutes $(MINUTES) --seed $(SEED)

proof-mutants: build ## faults planted one at a time, which the tests must see (25 minutes; MUTANTS=--quick=40: so many)
	$(PY) tests/proof/mutants.py --seed $(SEED) $(MUTANTS)

proof-coverage: build ## lines and branches of csrc/ all tests run, Python's too (20 minutes)
	$(PY) tests/native/coverage.py --python --least 100 --least-branches 100 --seed $(SEED)

proof-mcdc: $(VENV)/.made ## conditions the native tests show to decide alone (clang-19)
	$(PY) tests/proof/mcdc.py --seed $(SEED)

proof-oom: build ## no memory at every STEP-th allocation of every operation, on each Python from 3.11 to 3.13 that is here
	$(PY) tests/proof/oom.py --seed $(SEED) --step $(STEP)

proof-leak: build ## references (drift) and memory left behind by OPERATIONS operations of each class of cache
	PYTHONPATH=. $(PY) tests/proof/leak.py --operations $(OPERATIONS) --seed $(SEED)

proof-fork: build ## FORKS forks under load, descriptors over exec, signals, EXITS exits with live threads
	PYTHONPATH=. $(PY) tests/proof/fork.py --forks $(FORKS) --exits $(EXITS) --seed $(SEED)

proof-hostile: build ## user code that comes back, caches left at exit, imports again, sub-interpreters of 3.11 to 3.13
	$(PY) tests/proof/hostile.py --seed $(SEED)

proof-valgrind: build ## memcheck over the native tests, and tests of the binding under Debian's python3 (gate-tools; VALGRIND=--all: the slow ones too)
	$(PY) tests/proof/valgrind.py --seed $(SEED) $(VALGRIND)

fuzz: $(VENV)/.made ## operation streams against the model, FUZZ_SECONDS long, from SEED (FUZZ=--variant=tiny)
	$(PY) tests/fuzz/run.py --seconds $(FUZZ_SECONDS) --seed $(SEED) --jobs $(JOBS) $(FUZZ)

fuzz-tools: ## clang with libFuzzer, which fuzz then uses (Debian, as root)
	apt-get update -q && apt-get install -y --no-install-recommends clang libclang-rt-dev llvm

tools: servers gate-tools fuzz-tools ## all of these, which `make proof` wants (Debian, as root)

servers: ## redis-server, which the tests of Valkey then use, and memcached, for a bench (Debian, as root)
	apt-get update -q && apt-get install -y --no-install-recommends redis-server memcached

coverage: $(VENV)/.made ## lines and branches of csrc/ the native tests run
	$(PY) tests/native/coverage.py --least 100 --least-branches 100

bench: build build/silent/.made $(VENV)/.peers ## every figure and plot of the README, beside the peers; verdicts that no longer hold are said
	$(PY) -m bench all
	$(PY) -m bench.plots
	$(PY) -m bench.readme --write

bench-events: build $(VENV)/.peers build/silent/.made ## the one of events, beside a build without them
	$(PY) -m bench events

bench-%: build $(VENV)/.peers ## one bench: ops outside objects memo events memory budget traces latency expire persist far valkey tier
	$(PY) -m bench $*

readme-proof: ## the table that `make proof` printed last, into the README
	$(PY) tests/proof/table.py --paste

readme: build ## whether the README shows what bench/results/ has
	$(PY) -m bench.readme

gate: build ## instructions an operation, within 1 % of the committed figures
	$(PY) -m bench.gate $(GATE_FLAGS)

gate-accept: build ## the figures of now, for these tools, to be committed with what moved them
	$(PY) -m bench.gate --accept

gate-tools: ## valgrind, which the gate counts with (Debian, as root)
	apt-get update -q && apt-get install -y --no-install-recommends valgrind

pythons: $(VENV)/.nox ## every test under each of Python 3.10 to 3.13 that is on PATH or under pyenv
	$(PY) -m nox -s found tests

pythons-bounded: $(VENV)/.nox ## the quick part of the same, without the Python of `make test`
	$(PY) -m nox -s found beside

$(VENV)/.nox: | $(VENV)/.made
	$(PY) -m pip install -q nox
	touch $@

$(VENV)/.peers: | $(VENV)/.made
	$(PY) -m pip install -q cachebox lru-dict cachetools theine moka-py diskcache pymemcache matplotlib
	touch $@

$(VENV)/.lint: | $(VENV)/.made
	$(PY) -m pip install -q ruff mypy
	touch $@

lint: $(VENV)/.lint build ## ruff, mypy, and our C without a single warning
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	MYPYPATH=. $(PY) -m mypy
	gcc $(STRICT) -O2 -fsyntax-only csrc/gb.c
	gcc $(STRICT) -O2 -DGB_TINY -DGB_DEBUG=2 -fsyntax-only csrc/gb.c

format: $(VENV)/.lint ## ruff's formatting, applied
	$(PY) -m ruff check --fix . ; $(PY) -m ruff format .

GATE ?= gate
check: lint $(GATE) test tiny asan coverage ## lint, gate, test, tiny, asan, coverage, a slice of fuzz; CI adds pythons-bounded
	$(MAKE) fuzz FUZZ_SECONDS=$(FUZZ_SECONDS)

clean: ## remove everything made here
	rm -rf build $(VENV) .nox *.egg-info $(CYTHONS) gbcache/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
