.PHONY: all
all: build/build.ninja
	meson compile -C build
build/build.ninja:
	meson setup build
