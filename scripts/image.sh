#!/usr/bin/env bash
# Builds or tests the container image, with Docker if its engine answers, else with Podman.
#   scripts/image.sh build VERSION
#   scripts/image.sh test VERSION
# The result is a file for each architecture, bin/image/millrace-linux-ARCH.tar, that
# docker load and podman load accept. The one for this machine is loaded into the engine
# as millrace:VERSION and millrace:latest. Go builds the program on this machine, for each
# architecture, so no base image is downloaded and nothing is emulated.
#
# The test runs the image with Podman. It needs root on Linux, for a network namespace,
# and MILLRACE_TEST_DATABASE_URL.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$(root)"
action=${1-} version=${2-}
out=bin/image

install_podman() {
  command -v podman >/dev/null && command -v runc >/dev/null && command -v ip >/dev/null ||
    apt_install "podman runc iproute2" "${TMPDIR:-/tmp}/millrace-apt-podman.log"
}

# context ARCH DIR: put the contents of the image into a folder.
context() {
  rm -rf "$2"
  mkdir -p "$2"
  # grpcnotrace lets the linker remove unused methods, see the Makefile. timetzdata is
  # for TZ: the image has no time zones of its own.
  CGO_ENABLED=0 GOOS=linux GOARCH=$1 go build -trimpath -tags grpcnotrace,timetzdata \
    -ldflags "-s -w -X main.version=$version" -o "$2/millrace" ./cmd/millrace
  go -C tools/sbom tool cyclonedx-gomod bin -json -std -noserial -notimestamp -version "$version" \
    -output "$PWD/$2/sbom.cdx.json" "$PWD/$2/millrace"
  cp -r configs "$2"
  printf 'millrace:x:65532:65532::/:/\n' >"$2/passwd"
  printf 'millrace:x:65532:\n' >"$2/group"
  chmod -R a+rX,go-w "$2"
}

# build ENGINE
build() {
  local arch format=() quiet=() revision
  revision=$(git rev-parse HEAD 2>/dev/null || true)
  [[ $1 == docker ]] || format=(--format docker) quiet=(-q) # the OCI format has no HEALTHCHECK
  mkdir -p "$out"

  for arch in amd64 arm64; do
    say "building linux/$arch"
    context "$arch" ".local/image/$arch"
    # Use no cache: without BuildKit, Docker's cache mixes up architectures.
    "$1" build -q --no-cache "${format[@]}" --platform "linux/$arch" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
      -t "millrace:$version-$arch" -f deployments/Dockerfile ".local/image/$arch" >&2
    rm -f "$out/millrace-linux-$arch.tar.part" # Podman does not overwrite
    "$1" save "${quiet[@]}" -o "$out/millrace-linux-$arch.tar.part" "millrace:$version-$arch" >/dev/null
    mv "$out/millrace-linux-$arch.tar.part" "$out/millrace-linux-$arch.tar"
    cp ".local/image/$arch/sbom.cdx.json" "$out/millrace-linux-$arch.cdx.json"
  done

  "$1" tag "millrace:$version-$(go env GOHOSTARCH)" "millrace:$version"
  "$1" tag "millrace:$version-$(go env GOHOSTARCH)" millrace:latest
  say "built millrace:$version in $1's storage, and $out/millrace-linux-{amd64,arm64}.tar"
}

case $action in
  build)
    [[ -n $version ]] || die "usage: image.sh build VERSION"
    if have_docker; then build docker; else install_podman && build podman; fi
    ;;
  test)
    [[ -n $version ]] || die "usage: image.sh test VERSION"
    [[ $(uname) == Linux && $(id -u) -eq 0 ]] || die "the test needs root on Linux, for a network namespace"
    install_podman
    go build -o .local/image/imagetest ./scripts/imagetest
    exec .local/image/imagetest -image "$out/millrace-linux-$(go env GOHOSTARCH).tar" -version "$version"
    ;;
  *) die "unknown action $action, expected build or test" ;;
esac
