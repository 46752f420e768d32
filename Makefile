# make check : everything that can be checked on one machine; installs what it needs, needs root, some 30 minutes on 2 cores.
#              Its parts, each of which can be asked for alone, are below.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
export RUSTDOCFLAGS := -D warnings

CARGO ?= cargo
scripts = pre-inst-env .ci/run $(filter-out build-aux/bin %.scm,$(wildcard build-aux/*)) build-aux/bin/fruix \
  examples/debian/relocate.sh $(shell find freebsd -name '*.sh') $(wildcard freebsd/dist/rc.d/*) $(wildcard freebsd/dist/periodic/*) $(shell find compat-tests -name '*.sh')

# What a daemon must endure: taken over, asked by many, collecting all the time, attacked.  Some 25 minutes; scenarios-short is part of
# `make check' and takes two.
scenarios: roots
	./compat-tests/scenarios/run.sh

scenarios-short: roots
	./compat-tests/scenarios/run.sh --short

# What takes longer or more disk than `make check' may: the daemon's memory with big additions, and every script of the
# differential runner with both clients.
heavy: roots
	./compat-tests/main-job/memory.sh
	./compat-tests/differential/run.sh
	./compat-tests/differential/run.sh --client=1.2

# guix-daemon and fruixd side by side, an hour or so; BENCH='--quick' for less, compat-tests/bench/run.sh for what else there is.
bench: roots
	./build-aux/install-packages strace
	./compat-tests/bench/run.sh $(BENCH)

# The daemon killed at random moments, CRASH times of each kind, and every step that can fail in every way.
CRASH ?= 100
crash: prepare
	FRUIXD_CRASH=$(CRASH) $(CARGO) test --locked -p fruixd --test crash -- --nocapture --test-threads 2

# Random sequences of operations against guix-daemon and fruixd until they disagree, TIME seconds of them; random-short is part of
# `make check': what was found before.
TIME ?= 3600
random: roots
	./compat-tests/random/run.sh --time=$(TIME)

random-short: roots
	./compat-tests/random/run.sh replay

# The workspace for FreeBSD: linted (which is what `make check` has room for), and built.  Needs package registries only.
cross-freebsd-lint: prepare
	./build-aux/cross-freebsd clippy --workspace --all-targets -- -D warnings

cross-freebsd: cross-freebsd-lint
	./build-aux/cross-freebsd build --workspace --bins

# Disk images through other people's readers: 100,000 files, or the 2,000 that `make check' has room for.
images: prepare
	./compat-tests/images/readers.sh

images-short: prepare
	./compat-tests/images/readers.sh --short

.PHONY: images images-short

# A system from its file to firmware that boots it; FREEBSD_BASE=DIR boots a real FreeBSD too.  And sources and packages, by which systems are declared.
systems: prepare
	./compat-tests/systems/boot.sh
	./compat-tests/systems/sources.sh
	./compat-tests/systems/pkg.sh
	./compat-tests/systems/native-plan.sh

# Generations on a FreeBSD that runs: FREEBSD_BASE=DIR, and what compat-tests/systems/machine.sh says.  An hour and more; not part of check.
machine: prepare
	./compat-tests/systems/machine.sh

.PHONY: systems machine

# FreeBSD built from FREEBSD_SOURCE=DIR by derivations: an hour or so.
native: prepare
	./compat-tests/systems/native.sh

.PHONY: native

# The tests for FreeBSD, run by FREEBSD_GUEST=COMMAND in a guest; see build-aux/check-freebsd.
check-freebsd: prepare
	./build-aux/check-freebsd

.PHONY: cross-freebsd cross-freebsd-lint check-freebsd
.PHONY: bench crash check random random-short scenarios scenarios-short heavy prepare format lint test doc licences scripts roots main-job

check: SECONDS_AT_START := $(shell date +%s)
check: prepare format lint cross-freebsd-lint test doc licences scripts main-job scenarios-short random-short images-short systems
	@echo "make check: all passed in $$(($$(date +%s) - $(SECONDS_AT_START))) s"

# Packages of the machine itself.  A cargo is needed beforehand: see build-aux/build-fruixd.
prepare:
	@./build-aux/install-packages gcc libc6-dev mmdebstrap musl-tools shellcheck

format:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

test: prepare
	if $(CARGO) nextest --version >/dev/null 2>&1; then
	  $(CARGO) nextest run --locked --workspace
	  $(CARGO) test --locked --workspace --doc
	else
	  $(CARGO) test --locked --workspace
	fi

doc:
	$(CARGO) doc --locked --workspace --no-deps --document-private-items

licences:
	./compat-tests/licences.sh

scripts: prepare
	shellcheck -x --severity=warning $(scripts)

# Roots with the real peers, outside the tree, and the daemon as a release.
roots: prepare
	./build-aux/provision all
	./build-aux/provision guix-1.2

main-job: roots
	# What makes it fail at will is for tests alone.
	if grep -q FRUIXD_FAILPOINTS target/fruixd; then echo >&2 "target/fruixd has failpoints"; exit 1; fi
	./compat-tests/main-job/compare.sh
	./compat-tests/main-job/peek.sh
	./compat-tests/main-job/client-1.2.sh
	./compat-tests/main-job/profile.sh
