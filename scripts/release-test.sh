#!/usr/bin/env bash
# Shows that a release can be reproduced, and that its archive for this machine works.
# Builds the release from two copies of the working tree, the second one with a different
# time zone and umask and an empty build cache, and compares the archives.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(root)"

version=0.0.0-test
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

# build DIR [NAME=VALUE...]: build the release from the copy in DIR.
build() {
  local dir=$1
  shift
  say "building in $dir"
  (cd "$dir" && env "$@" go run ./scripts/release -version "$version" -time 1767225600 -out archives)
}

mkdir "$work/tmp"
first=$work/first second=$work/second/in/another/place
mkdir -p "$first" "$(dirname "$second")"
git ls-files -co --exclude-standard | while read -r file; do [[ ! -e $file ]] || echo "$file"; done | tar -cf - -T - | tar -xf - -C "$first"
cp -r "$first" "$second"
build "$first"
(umask 077 && build "$second" TZ=Asia/Tokyo LC_ALL=C GOCACHE="$work/cache" TMPDIR="$work/tmp")

sums=$first/archives/SHA256SUMS
diff "$sums" "$second/archives/SHA256SUMS" >&2 || die "two builds differ"
[[ $(wc -l <"$sums") -eq 6 ]] || die "expected 6 archives: $(cat "$sums")"
(cd "$first/archives" && sha256sum --quiet -c SHA256SUMS)
say "two builds of 6 archives are identical"

name=millrace_${version}_$(go env GOHOSTOS)_$(go env GOHOSTARCH)
mkdir "$work/unpacked"
case $name in
  *windows*) unzip -q "$first/archives/$name.zip" -d "$work/unpacked" ;;
  *) tar -xzf "$first/archives/$name.tar.gz" -C "$work/unpacked" ;;
esac
cd "$work/unpacked/$name"

[[ $(./millrace version) == "$version" ]] || die "millrace version prints $(./millrace version)"
for file in LICENSE README.md man/man1/millrace.1 man/man1/millrace-failed-requeue.1 completions/{millrace.bash,_millrace,millrace.fish,millrace.ps1}; do
  [[ -s $file ]] || die "$file is missing in $name"
done
grep -q 'pkg:golang/github.com/jackc/pgx/v5@v' sbom.cdx.json || die "the bill of materials lacks pgx"
grep -q "^.TH \"MILLRACE-FAILED-REQUEUE\" \"1\" \"Jan 2026\" \"millrace $version\"" man/man1/millrace-failed-requeue.1 ||
  die "the manual page has a different header: $(grep '^.TH' man/man1/millrace-failed-requeue.1)"

# Complete as an interactive shell would.
completed=$(PATH=$PWD:$PATH bash -c '
  source completions/millrace.bash
  _get_comp_words_by_ref() { cur=req prev=failed words=(millrace failed req) cword=2; } # from the package bash-completion
  COMP_WORDS=(millrace failed req) COMP_CWORD=2 COMP_TYPE=9 COMP_LINE="millrace failed req" COMP_POINT=19
  __start_millrace millrace
  echo "${COMPREPLY[*]}"' 2>/dev/null) # it is not an interactive shell
[[ $completed == requeue* ]] || die "bash completes 'millrace failed req' with '$completed'"
say "the archive $name works"
