#!/usr/bin/env bash
# A command under other instruction sets than this CPU's best, and with other numbers of threads:
#   tests/portable.sh "default avx2 avx512" "1 2" COMMAND...
# It finds the set in PRUNECLI_TEST_SET, the threads in PRUNECLI_TEST_THREADS and OMP_NUM_THREADS.
# `foreign` stands for the best set below this CPU's own. Sets that the CPU lacks are left out.
set -euo pipefail
sets=$1 threads=$2
shift 2

has() {
    case $1 in
        default) true ;;
        avx2) grep -qw avx2 /proc/cpuinfo ;;
        avx512) grep -qw avx512bw /proc/cpuinfo ;;
        *) echo "unknown set '$1': default, avx2, avx512 or foreign" >&2; exit 2 ;;
    esac
}

# what torch's own kernels, oneDNN and MKL call a set
onednn() { case $1 in default) echo SSE41 ;; avx2) echo AVX2 ;; avx512) echo ALL ;; esac }
mkl() { case $1 in default) echo SSE4_2 ;; avx2) echo AVX2 ;; avx512) echo AVX512 ;; esac }

foreign=default
if has avx512; then foreign=avx2; fi
for set in ${sets//foreign/$foreign}; do
    has "$set" || { echo "== $set: not on this CPU"; continue; }
    for count in $threads; do
        echo "== $set, $count thread(s)"
        # kernels that torch compiled for one set are wrong for another
        TORCHINDUCTOR_CACHE_DIR=${TMPDIR:-/tmp}/torchinductor-$set \
            ATEN_CPU_CAPABILITY=$set ONEDNN_MAX_CPU_ISA=$(onednn "$set") \
            MKL_ENABLE_INSTRUCTIONS=$(mkl "$set") HF_HUB_OFFLINE=1 \
            PRUNECLI_TEST_SET=$set PRUNECLI_TEST_THREADS=$count OMP_NUM_THREADS=$count "$@"
    done
done
