#!/usr/bin/env bash
# Compares the benchmarks of the hot paths (go test -bench) in this work tree with
# those of another commit, by benchstat. For information, never as a gate: the exit
# status says whether it could be done, not how it went.
#
#   tests/bench/compare.sh [COMMIT]
#
# COMMIT is where this branch left its upstream, unless it is given; where that is
# HEAD itself and nothing has changed, the commit before. COUNT and BENCHTIME are
# for whoever has more time, BENCH and PACKAGES choose.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
count=${COUNT:-6}
benchtime=${BENCHTIME:-100ms}
bench=${BENCH:-'^Benchmark(SendRecv|Blocked|Request|Connection|Added|Counts|Takeover)$'}
packages=${PACKAGES:-scm handover server}

base=${1:-}
if [ -z "$base" ]; then
  base=HEAD
  for upstream in '@{upstream}' origin/HEAD origin/main; do
    if base=$(git merge-base HEAD "$upstream" 2>/dev/null); then break; else base=HEAD; fi
  done
  if [ "$(git rev-parse "$base")" = "$(git rev-parse HEAD)" ] && git diff --quiet HEAD -- scm handover server; then
    base=HEAD~1
  fi
fi
if ! base=$(git rev-parse --short --verify --quiet "$base^{commit}"); then
  echo "compare: there is no earlier commit to compare with"
  exit 0
fi

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/tree"
git archive "$base" | tar -x -C "$dir/tree"
for p in $packages; do
  go test -c -o "$dir/new-$p.test" "./$p"
  (cd "$dir/tree" && go test -c -o "$dir/old-$p.test" "./$p")
done
for i in $(seq "$count"); do # in turns, so that what else the machine does hits both
  for p in $packages; do
    for side in old new; do
      tree=$root
      [ "$side" = old ] && tree=$dir/tree
      # A benchmark that fails is somebody else's to complain about.
      (cd "$tree/$p" && "$dir/$side-$p.test" -test.run '^$' -test.bench "$bench" \
        -test.benchtime "$benchtime" -test.benchmem) >>"$dir/$side.txt" 2>&1 ||
        echo "compare: $side $p: a benchmark fails" >&2
    done
  done
done
echo "$base (old) and the work tree (new), $count times each:"
cd tests/bench
go tool benchstat old="$dir/old.txt" new="$dir/new.txt"
