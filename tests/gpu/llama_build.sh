#!/usr/bin/env bash
# Builds llama.cpp's programs for one GPU architecture: llama_build.sh SOURCE OUT [ARCH]
#
# SOURCE is a source tree of llama.cpp or a tarball of one (.tar.gz, .tar.xz, .tar.zst). OUT gets llama-bin.tar.xz, or, when
# it is larger than PART_MIB (15), its parts llama-bin.tar.xz.00, .01, ... to be put together with cat. In it: llama-bench,
# llama-completion, llama-cli, llama-server and their libraries, stripped, found beside the programs ($ORIGIN). Needed:
# cmake 3.18, a C++ compiler, and nvcc with cuBLAS on PATH or in CUDA_PATH. JOBS: all cores; BUILD: a directory to keep.
set -euo pipefail

source=$1 out=$2 arch=${3:-90}
jobs=${JOBS:-$(nproc)}
build=${BUILD:-$(mktemp -d)}
part=${PART_MIB:-15}
mkdir -p "$build" "$out"
SECONDS=0

if [[ -f $source ]]; then
    mkdir -p "$build/source"
    case $source in
        *.zst) zstd -dc "$source" | tar x -C "$build/source" ;;
        *) tar xf "$source" -C "$build/source" ;;
    esac
    source=$(dirname "$(find "$build/source" -maxdepth 2 -name CMakeLists.txt | head -n 1)")
fi
if [[ -n ${CUDA_PATH:-} ]]; then
    export PATH=$CUDA_PATH/bin:$PATH
elif ! command -v nvcc > /dev/null; then
    export PATH=/usr/local/cuda/bin:$PATH
fi
generator=()
command -v ninja > /dev/null && generator=(-G Ninja)

# One architecture, machine code alone; no flash-attention kernels for quantised KV caches; nothing that wants the network.
# Shared libraries, because four programs use one copy of the kernels. The linker need not find the driver's own library.
cmake -S "$source" -B "$build/cmake" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CUDA_ARCHITECTURES="$arch-real" -DCMAKE_BUILD_RPATH='$ORIGIN' -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
    -DCMAKE_INSTALL_RPATH='$ORIGIN' -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined -DBUILD_SHARED_LIBS=ON \
    -DGGML_CUDA=ON -DGGML_CUDA_FA=ON -DGGML_CUDA_FA_ALL_QUANTS=OFF -DGGML_CUDA_NCCL=OFF -DGGML_CUDA_GRAPHS=ON \
    -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_CCACHE=OFF -DGGML_OPENMP=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF ${LLAMA_CMAKE:-} > "$build/configure.log" 2>&1 || { tail -n 30 "$build/configure.log"; exit 1; }
echo "configured after $SECONDS s"
programs=(llama-bench llama-completion llama-cli llama-server)
cmake --build "$build/cmake" -j "$jobs" --target "${programs[@]}" > "$build/build.log" 2>&1 \
    || { grep -m 5 -A 5 -E 'error|FAILED' "$build/build.log"; tail -n 20 "$build/build.log"; exit 1; }
echo "built after $SECONDS s"

package=$build/package/llama
rm -rf "$build/package"
mkdir -p "$package"
cp -a "$build/cmake/bin/"lib*.so* "$package/"
cp "${programs[@]/#/$build/cmake/bin/}" "$package/"
find "$package" -type f -exec strip --strip-unneeded {} +
tar c -C "$build/package" llama | xz -T "$jobs" -3 > "$build/llama-bin.tar.xz"
rm -f "$out"/llama-bin.tar.xz*
if (($(stat -c %s "$build/llama-bin.tar.xz") > part << 20)); then
    split -b "${part}M" -d "$build/llama-bin.tar.xz" "$out/llama-bin.tar.xz."
else
    cp "$build/llama-bin.tar.xz" "$out/"
fi
echo "packed after $SECONDS s:"
ls -l "$out"/llama-bin.tar.xz*
