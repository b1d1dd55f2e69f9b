# The two commands of the README are `make demo` and `make test`; both work in a fresh clone and say what they do.
# Every artifact is built once: the binaries, the tests and the demo share one profile, one target folder and, because they
# ask the dependencies for the same features (Cargo.toml), the dependencies.

PREFIX ?= /usr/local
DESTDIR ?=

# One make job per tool run is enough: cargo and the packer are parallel by themselves.
SHELL := /bin/sh
CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET_DIR)/release

# All members at once: tests of one crate alone may ask a dependency for other features, and build it again.
TEST_ARGS := --release --workspace

.PHONY: help setup build shim build-api man agent-package deb tarball demo test test-fast test-long test-warm test-kubernetes test-debian test-kernel test-tools fuzz check install uninstall bench bench-prefetch bench-flist bench-rootfs bench-fork clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing on this host (Debian packages), and say what
	@scripts/setup

# Tests compile everything at once: what is compiled together decides which features shared dependencies have, so one selection after the other
# would compile half of them anew each time.
PROGRAMS = --package zmachine --package zmachine-agent
NODE_PROGRAMS = --package zmachine-shim --package zmachine-snapshotter
test test-long test-warm test-kubernetes test-debian: PROGRAMS = --workspace --bins --tests
test test-long test-warm test-kubernetes test-debian: NODE_PROGRAMS = --workspace --bins --tests

build: setup ## the host binary and the guest agent, in $(TARGET_DIR)/release
	@$(CARGO) build --release $(PROGRAMS)

shim: setup ## the shim for Kubernetes and the snapshotter (docs/kubernetes.md), in $(TARGET_DIR)/release
	@$(CARGO) build --release $(NODE_PROGRAMS)

build-api: setup ## the server of 'zmachine serve', in $(TARGET_DIR)/release
	@$(CARGO) build --release --package zmachine-api

VERSION = $(shell sed -n '/^\[workspace.package\]/,/^$$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
MAN := $(TARGET_DIR)/man

# What writes them is a test of the program (crates/cli/src/commands/manual.rs); pages of commands that are gone must not stay.
man: setup ## manual pages of all commands, in $(TARGET_DIR)/man
	@rm -rf $(MAN)
	@ZMACHINE_MAN_DIR=$(abspath $(MAN)) $(CARGO) test --quiet $(TEST_ARGS) --bin zmachine commands::manual >/dev/null
	@echo "man: $$(ls $(MAN) | wc -l) pages in $(MAN)"

agent-package: build ## the guest agent as a Debian package for VMs, in $(TARGET_DIR)/release
	@packaging/deb $(RELEASE) $(MAN) $(VERSION) $(RELEASE) zmachine-agent

deb: build build-api shim man ## Debian packages of the host program, of the guest agent, of a guest kernel and of the shim for Kubernetes, in $(TARGET_DIR)/packages
	@packaging/deb $(RELEASE) $(MAN) $(VERSION) $(TARGET_DIR)/packages

tarball: build build-api man ## a tree that runs where it is unpacked, in $(TARGET_DIR)/packages
	@packaging/tarball $(RELEASE) $(MAN) $(VERSION) $(TARGET_DIR)/packages

demo: build ## pack two file trees, run a container from each
	@scripts/demo $(RELEASE)/zmachine

test: export ZMACHINE_TEST_KERNEL := $(abspath $(TARGET_DIR))/test-home/kernels/default
test: export ZMACHINE_TEST_SKIPS := $(abspath $(TARGET_DIR))/skipped-tests
test: build shim test-kernel test-tools ## every test, the ones with guests included
	@: >$(ZMACHINE_TEST_SKIPS)
	$(CARGO) test $(TEST_ARGS) --no-fail-fast
	@echo "test: $$(wc -l <$(ZMACHINE_TEST_SKIPS)) skipped"; sort $(ZMACHINE_TEST_SKIPS)

# The tests that want a guest or root say that they are skipped, and count as such.
test-fast: export ZMACHINE_TEST_FAST := 1
test-fast: ## no guest, no root, no server: for whoever changes code (it needs no setup but what the build needs)
	$(CARGO) test $(TEST_ARGS) --exclude zmachine-guest-tests -- --skip servers::

fuzz: setup ## let every fuzz target run for SECONDS (60 by default), and keep what is new in the corpus
	fuzz/run --keep $(or $(SECONDS),60)

test-long: export ZMACHINE_TEST_KERNEL := $(abspath $(TARGET_DIR))/test-home/kernels/default
test-long: build test-kernel ## what takes minutes: a disk server that is killed a hundred times, every process of a snapshot killed at every step, a PostgreSQL saved twenty times ...
	$(CARGO) test $(TEST_ARGS) --test guest -- --ignored --skip debian

test-warm: export ZMACHINE_TEST_KERNEL := $(abspath $(TARGET_DIR))/test-home/kernels/default
test-warm: export ZMACHINE_WARM := 1
test-warm: build shim test-kernel test-tools ## the tests with guests once more, with machines that begin from templates
	$(CARGO) test $(TEST_ARGS) --test guest

test-kubernetes: build shim test-kernel ## a real Kubernetes of two nodes, built once from Debian's sources (eleven minutes of CPU): Deployments, probes, drain ...
	scripts/kubernetes-build $(TARGET_DIR)/kubernetes
	scripts/kubernetes-test $(TARGET_DIR)/kubernetes $(RELEASE) $(TARGET_DIR)/test-home/kernels/default $$(mktemp -d)/cluster

test-debian: export ZMACHINE_TEST_KERNEL := $(abspath $(TARGET_DIR))/test-home/kernels/default
test-debian: build test-kernel ## VMs of a whole Debian, with cloud-init, with networkd alone, with ifupdown alone: minutes, and 300 MB of packages
	$(CARGO) test $(TEST_ARGS) --test guest -- --ignored debian

# Tests that boot guests share one installed kernel.
test-kernel: build
	@test -e $(TARGET_DIR)/test-home/kernels/default || ZMACHINE_HOME=$(abspath $(TARGET_DIR))/test-home $(RELEASE)/zmachine kernel install

# A real S3 server. Without optimisation: it is small, and compiles in a third of the time.
test-tools: setup
	@command -v s3s-fs >/dev/null || { echo "test: installing s3s-fs"; \
		CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --quiet --locked --debug s3s-fs --version 0.14.1 --features binary; }

check: setup ## format, lints, dependencies, layers, documentation, scripts
	$(CARGO) fmt --all --check
	for script in scripts/* packaging/stage packaging/deb packaging/tarball packaging/test packaging/test-systemd packaging/debian/p* examples/*/build examples/thaw.d/* benches/run fuzz/run fuzz/rustc-instrumented .ci/run; do case "$$(head -n 1 "$$script")" in *bash) bash -n "$$script" ;; *python3) python3 -c "import ast, sys; ast.parse(open(sys.argv[1]).read())" "$$script" ;; *) sh -n "$$script" ;; esac || exit; done
	$(CARGO) xtask layering
	$(CARGO) xtask tidy
	scripts/draw-architecture --check
	@# Without optimisation: it looks at one project, and compiles in a third of the time.
	@command -v cargo-deny >/dev/null || { echo "check: installing cargo-deny"; \
		CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --quiet --locked --debug cargo-deny; }
	$(CARGO) deny --log-level error check bans licenses sources
	@# Known vulnerabilities, where their database can be had: a host without it is no reason to fail.
	@if timeout 60 $(CARGO) deny --log-level error fetch db 2>/dev/null; then \
		echo "$(CARGO) deny check advisories"; $(CARGO) deny --log-level error check --disable-fetch advisories; \
	else echo "check: no database of advisories can be had here: not checked"; fi
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --quiet --release --no-deps --workspace --document-private-items

# The symbols lie where a debugger and the program itself, for the lines of a backtrace, look for them.
install: DEBUG := $(DESTDIR)$(PREFIX)/bin/.debug/zmachine.debug
install: SHARE := $(DESTDIR)$(PREFIX)/share
install: ## copy what `make build` made to $(DESTDIR)$(PREFIX), the program without its symbols and these beside it; manual pages after `make man`
	@test -x $(RELEASE)/zmachine && test -x $(RELEASE)/zmachine-agent || { echo "install: run make build first" >&2; exit 1; }
	install -d $(dir $(DEBUG))
	objcopy --only-keep-debug --compress-debug-sections=zlib $(RELEASE)/zmachine $(DEBUG)
	chmod 644 $(DEBUG)
	objcopy --strip-all --add-gnu-debuglink=$(DEBUG) $(RELEASE)/zmachine $(RELEASE)/zmachine.stripped
	install -D -m 755 $(RELEASE)/zmachine.stripped $(DESTDIR)$(PREFIX)/bin/zmachine
	rm -f $(RELEASE)/zmachine.stripped
	install -D -m 755 $(RELEASE)/zmachine-agent $(DESTDIR)$(PREFIX)/lib/zmachine/zmachine-agent
	install -d $(SHARE)/bash-completion/completions $(SHARE)/fish/vendor_completions.d $(SHARE)/zsh/site-functions $(SHARE)/man/man1
	$(RELEASE)/zmachine completion bash >$(SHARE)/bash-completion/completions/zmachine
	$(RELEASE)/zmachine completion fish >$(SHARE)/fish/vendor_completions.d/zmachine.fish
	$(RELEASE)/zmachine completion zsh >$(SHARE)/zsh/site-functions/_zmachine
	for page in $(MAN)/*.1; do [ ! -e "$$page" ] || install -m 644 "$$page" $(SHARE)/man/man1/; done
	@# For 'zmachine serve', when 'make build-api' was run as well.
	if test -x $(RELEASE)/zmachine-api; then install -D -s -m 755 $(RELEASE)/zmachine-api $(DESTDIR)$(PREFIX)/lib/zmachine/zmachine-api; fi

uninstall: ## remove what `make install` copied; machines and images stay
	rm -f $(DESTDIR)$(PREFIX)/bin/zmachine $(DESTDIR)$(PREFIX)/bin/.debug/zmachine.debug $(DESTDIR)$(PREFIX)/lib/zmachine/zmachine-agent $(DESTDIR)$(PREFIX)/lib/zmachine/zmachine-api
	[ ! -d $(DESTDIR)$(PREFIX)/share ] || cd $(DESTDIR)$(PREFIX)/share && rm -f bash-completion/completions/zmachine fish/vendor_completions.d/zmachine.fish zsh/site-functions/_zmachine man/man1/zmachine.1 man/man1/zmachine-*.1
	rmdir $(DESTDIR)$(PREFIX)/lib/zmachine $(DESTDIR)$(PREFIX)/bin/.debug 2>/dev/null || true

bench: build ## measure: start-up, packing, reading
	@benches/run $(RELEASE)/zmachine

bench-prefetch: build ## measure first starts from a store that is far away, with and without hints (TREE=a tree with python3, of your own)
	@benches/prefetch.py $(RELEASE)/zmachine $(TREE)

bench-flist: build ## measure packing and unpacking beside tar, zstd and mkfs.erofs
	@mkdir -p .demo
	@benches/flist.py $(RELEASE)/zmachine $(FLIST_ARGS)

bench-rootfs: build ## measure the block root beside ext4, virtio-fs and FUSE + overlay + virtio-fs (root; an hour emulated)
	@mkdir -p .demo
	@python3 benches/rootfs $(RELEASE)/zmachine $(ROOTFS_ARGS)

bench-fork: build ## measure forks and warm starts beside cold ones
	@mkdir -p .demo/home/kernels
	@[ -e .demo/home/kernels/default ] || ZMACHINE_HOME=$(abspath .demo/home) $(RELEASE)/zmachine kernel install
	@ZMACHINE_KERNELS=.demo/home/kernels benches/fork.py $(RELEASE)/zmachine $(FORK_ARGS)

clean: ## remove what was built and what the demo made
	$(CARGO) clean
	rm -rf .demo
