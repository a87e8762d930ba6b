#!/usr/bin/env bash
# llama.cpp and ONNX Runtime without a compiler: get.sh FOLDER (needs npm, and package registries)
# llama.cpp's converter out of llama-cpp-python's source distribution, its runtime out of
# node-llama-cpp.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
converter=0.3.36 runtime=3.22.1 onnx=0.18.0
folder=$1
rm -rf "$folder"
mkdir -p "$folder"
cp "$here/llamacpp.mjs" "$folder"
cd "$folder"

pip=(python -m pip --quiet --disable-pip-version-check)
"${pip[@]}" download --no-deps --no-binary :all: "llama-cpp-python==$converter"
source=llama_cpp_python-$converter
tar xzf "$source.tar.gz" --strip-components=3 "$source/vendor/llama.cpp/convert_hf_to_gguf.py" \
    "$source/vendor/llama.cpp/conversion" "$source/vendor/llama.cpp/gguf-py"
rm "$source.tar.gz"
"${pip[@]}" install --no-deps --target python sentencepiece "onnxruntime-genai==$onnx" \
    onnxruntime onnx onnx-ir ml_dtypes flatbuffers protobuf

case $(uname -m) in
    x86_64) machine=linux-x64 ;;
    aarch64) machine=linux-arm64 ;;
    *) echo "get.sh: no runtime for $(uname -m)" >&2 && exit 1 ;;
esac
# the other optional packages (GPUs, other machines) are 600 MB
npm install --silent --no-fund --no-audit --ignore-scripts --omit=optional \
    "node-llama-cpp@$runtime" "@node-llama-cpp/$machine@$runtime"
touch ready
