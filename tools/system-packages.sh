#!/bin/sh
# What the tests use from outside Python's packages: cmake and a compiler (robomimic's egl_probe is built), offscreen
# OpenGL (frames), Chromium (report.html is opened in it). Installed where that can be done without asking, i.e. as root
# on a Debian; elsewhere what is missing is named: tests of frames and of the browser are skipped then.
set -e
missing=""
command -v cmake >/dev/null || missing="$missing cmake"
command -v g++ >/dev/null || missing="$missing g++"
command -v chromium >/dev/null || missing="$missing chromium"
ldconfig -p 2>/dev/null | grep -q libEGL.so.1 || missing="$missing libegl1 libgl1-mesa-dri"
test -z "$missing" && exit 0
if test "$(id -u)" = 0 && command -v apt-get >/dev/null; then
    apt-get update -q -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -q -y --no-install-recommends $missing >/dev/null
else
    echo "not installed:$missing (Debian's names)" >&2
fi
