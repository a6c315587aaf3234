#!/bin/bash
# Builds the GPU engine alone (no oneDNN, no Node needed) and runs what is named: tests, matrix, sanitize, experts, ops, hot, expand, norms, few, step, profile.
# usage: gpu.sh OUTPUT_FOLDER [tests] [matrix "arguments"] [sanitize] [ops] [step "arguments"] …
# GPU_ARCH=90-real: with what GPUs before Hopper run. GPU_TESTS: which of the test programs run.
set -u
native=$(cd "$(dirname "$0")/.." && pwd)
out=$1
shift
arch=${GPU_ARCH:-90a-real}
build=${GPU_BUILD:-/tmp/pipelora-gpu-$arch}
mkdir -p "$build" "$out"
status=0

echo "== build: $(nvidia-smi --query-gpu=name --format=csv,noheader | tr '\n' ' '), $(nproc) cores, $(date -u +%F)"
start=$SECONDS
if [ -f /usr/local/cuda/include/cublasLt.h ]; then
  g++ -std=c++20 -fsyntax-only -I/usr/local/cuda/include -I"$native" -I"$native/include" "$native/tests/gpu/cublaslt_abi.cpp" ||
    { echo "FAILED: cuBLASLt's header disagrees"; status=1; }
fi
for header in /usr/include/nccl.h /usr/local/cuda/include/nccl.h; do
  [ -f "$header" ] || continue
  g++ -std=c++20 -fsyntax-only -I/usr/local/cuda/include -I"$native" "$native/comm/tests/nccl_abi.cpp" ||
    { echo "FAILED: NCCL's header disagrees"; status=1; }
done
if ! { cmake -G Ninja -S "$native/ops/cuda/standalone" -B "$build" -DCMAKE_CUDA_ARCHITECTURES="$arch" && ninja -C "$build" -k 0; } >"$out/build.log" 2>&1; then
  grep -E "error|undefined" "$out/build.log" | head -20
  [ -x "$build/cuda_step" ] || exit 1
  status=1
fi
echo "built in $((SECONDS - start)) s"

while [ $# -gt 0 ]; do
  job=$1
  shift
  start=$SECONDS
  case $job in
  tests)  # all at once: most of their time is the host's, in float64
    programs=${GPU_TESTS:-cuda_kernels cuda_learners cuda_experts cuda_attention cuda_linear cuda_mixers cuda_model}
    declare -A pids=()
    for program in $programs; do
      OMP_WAIT_POLICY=passive timeout 300 "$build/$program" "$native/tests/fixtures/cuda_model.tsv" >"$out/$program.log" 2>&1 &
      pids[$program]=$!
    done
    for program in $programs; do
      wait "${pids[$program]}" || { echo "FAILED: $program ($?)"; status=1; }
      grep -E "^FAILED" "$out/$program.log" | head -40
      echo "$program, $((SECONDS - start)) s: $(tail -1 "$out/$program.log")"
    done
    ;;
  matrix)  # --seed N --cases N, or --all
    # shellcheck disable=SC2086
    timeout 500 "$build/cuda_matrix" $1 >"$out/matrix.log" 2>&1 || { echo "FAILED: cuda_matrix ($?)"; status=1; }
    grep -E "^FAILED" "$out/matrix.log" | head -40
    tail -2 "$out/matrix.log"
    shift
    ;;
  sanitize)
    for tool in memcheck racecheck; do
      for program in cuda_kernels cuda_learners cuda_experts cuda_attention cuda_linear cuda_mixers; do
        log="$out/$tool-$program.log"
        timeout 400 compute-sanitizer --tool $tool --error-exitcode 9 "$build/$program" small >"$log" 2>&1
        ended=$?
        # racecheck has something to say of two of cuBLASLt's own kernels. Whatever else it counts, or a program cut short, is a failure.
        displayed=$(sed -n 's/.*RACECHECK SUMMARY: \([0-9]*\) hazard.*/\1/p' "$log")
        if [ $ended = 9 ] && grep -q "^0 failed" "$log" && [ "$displayed" = "$(grep -c "Race reported.* access at nvjet" "$log")" ]; then
          echo "$tool $program: $displayed hazards, all in cuBLASLt's kernels"
          continue
        fi
        [ $ended = 0 ] || { echo "FAILED: $tool $program ($ended)"; status=1; }
        grep -E "=========" "$log" | grep -v "COMPUTE-SANITIZER" | head -12
      done
    done
    ;;
  experts) timeout 100 "$build/cuda_expert_ops" 2>&1 | tee "$out/experts.log" || status=1 ;;
  ops) timeout 200 "$build/cuda_ops" 2>&1 | tee "$out/ops.log" || status=1 ;;
  hot)  # a block's products in bf16 and in e4m3
    timeout 100 "$build/cuda_ops" hot 1120 3072 8192 2>&1 | tee "$out/hot.log" || status=1
    ;;
  expand)  # 4-bit weights to bf16 and to e4m3
    timeout 60 "$build/cuda_ops" expand 2>&1 | tee "$out/expand.log" || status=1
    ;;
  norms)  # norms as inputs of products in e4m3
    timeout 100 "$build/cuda_ops" norms 1120 3072 8192 2>&1 | tee "$out/norms.log" || status=1
    ;;
  few)  # a block's products of few tokens
    timeout 100 "$build/cuda_ops" few 1 2 4 8 16 32 64 2>&1 | tee "$out/few.log" || status=1
    ;;
  step)
    # shellcheck disable=SC2086
    timeout 400 "$build/cuda_step" $1 2>&1 | tee -a "$out/step.log" || status=1
    shift
    ;;
  profile)
    # shellcheck disable=SC2086
    timeout 300 ncu --clock-control none --profile-from-start off --metrics gpu__time_duration.sum --csv \
      "$build/cuda_step" --profile $1 >"$out/profile.csv" 2>"$out/profile.err" || { tail -3 "$out/profile.err" "$out/profile.csv"; status=1; }
    python3 "$native/bench/kernel_times.py" "$out/profile.csv"
    shift
    ;;
  esac
  echo "== $job took $((SECONDS - start)) s"
done
exit $status
