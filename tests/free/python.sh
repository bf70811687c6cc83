#!/bin/sh
# A free-threaded CPython 3.13 in $1, from Debian's own source package: the mirror is the one
# this machine's apt knows, the lists and caches of apt are ours, so that the machine's stay.
# What follows $1 is told to its configure.
set -eu
into=$1 work=$1.source
shift
configured=$*
test -x "$into/bin/python3.13t" && exit 0
mkdir -p "$into" "$work"
into=$(cd "$into" && pwd) work=$(cd "$work" && pwd)

mirror=$(sed -nE 's#^(URIs:|deb )[[:space:]]*(https?://[^ ]*/debian)/?([[:space:]].*)?$#\2#p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1)
test -n "$mirror" || { echo "no Debian mirror among the sources of apt" >&2; exit 1; }
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb-src [signed-by=$keys] $mirror trixie main" >"$work/sources.list"
set -- -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root
apt-get "$@" -q update
cd "$work"
apt-get "$@" -q source --download-only python3.13
tar -xf python3.13_*.orig.tar.xz
cd Python-3.13*/

./configure -q --prefix="$into" --disable-gil --disable-test-modules --without-ensurepip \
    OPT="-O2 -g -DNDEBUG -Wall" $configured
nice make -s -j"$(nproc)"
make -s install
test "$("$into/bin/python3.13t" -c 'import sys; print(sys._is_gil_enabled())')" = False
rm -rf "$work"
