# A thin front for Meson: `make` builds build/cetkvm and needs no step before it.
#
#   make                    build                     make check    all tests (quick ones first)
#   make demo               the attack, twice         make bench    measure against QEMU TCG and native
#   make install            PREFIX=/usr/local         make lockstep compare with silicon until stopped
#   make fuzz-guests        SEEDS=100 SECONDS=60      make format   what has changed since HEAD
#   make clean
#
# Variants live in build directories of their own and go with any target:
#   DEBUG=1   SANITIZE=address,undefined   SANITIZE=thread

PREFIX ?= /usr/local
SEEDS ?= 100
SECONDS ?= 60
comma := ,

ifdef SANITIZE
BUILD := build-$(subst $(comma),-,$(SANITIZE))
MESON_ARGS := -Db_sanitize=$(SANITIZE) -Db_lundef=false
else ifdef DEBUG
BUILD := build-debug
MESON_ARGS := --buildtype=debug
else
BUILD := build
MESON_ARGS :=
endif

export CETKVM_BUILD := $(CURDIR)/$(BUILD)

.PHONY: all
all: $(BUILD)/build.ninja
	@meson compile -C $(BUILD)
	@ln -sf src/cli/cetkvm $(BUILD)/cetkvm

$(BUILD)/build.ninja:
	@scripts/setup.sh build
	meson setup $(BUILD) --prefix='$(PREFIX)' $(MESON_ARGS)

.PHONY: check quick-check
check: all
	@scripts/setup.sh check
	@tests/run

quick-check: all
	@tests/run --quick

.PHONY: demo
demo: all
	@scripts/setup.sh demo
	@scripts/demo.sh

.PHONY: bench
bench: all
	@scripts/setup.sh bench
	@bench/run

.PHONY: lockstep
lockstep: all
	@tests/lockstep/run

.PHONY: fuzz-guests
fuzz-guests:
	@$(MAKE) --no-print-directory SANITIZE=address,undefined all
	@CETKVM_BUILD='$(CURDIR)/build-address-undefined' tests/hostile/run --seeds $(SEEDS) --seconds $(SECONDS)

.PHONY: install
install: all
ifneq ($(origin PREFIX),file) # given: it need not be what the build was set up with
	@meson configure $(BUILD) --prefix='$(PREFIX)'
endif
	meson install -C $(BUILD)

.PHONY: format
format:
	git clang-format --force --extensions c,h

.PHONY: clean
clean:
	rm -rf build build-debug build-address-undefined build-thread
