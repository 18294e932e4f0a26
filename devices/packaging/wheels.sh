#!/usr/bin/env bash
# Collect the wheels of edge-runtime and of all that it needs in a folder, for a machine and a Python that need not be
# those at hand.
#   wheels.sh MACHINE PYTHON EXTRAS FOLDER        wheels.sh aarch64 3.11 onnx build/wheels
set -euo pipefail
machine=$1 version=$2 extras=$3 folder=$(realpath -m "$4")
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}

# What runs on glibc 2.28 (Debian 10; a Jetson's Ubuntu 20.04 has 2.31); pip takes a named platform literally.
platforms=()
for minor in $(seq 28 -1 17); do platforms+=(--platform "manylinux_2_${minor}_$machine"); done
platforms+=(--platform "manylinux2014_$machine")

rm -rf "$folder"
mkdir -p "$folder"
own=$(mktemp -d)
trap 'rm -rf "$own"' EXIT
# Of a copy: setuptools would also pack what an earlier build has left beside the sources.
mkdir "$own/source"
tar --exclude=__pycache__ --exclude='*.egg-info' -cf - pyproject.toml README.md LICENSE edge_runtime coordinator \
  compression export devices | tar -C "$own/source" -xf -
"$python" -m build --no-isolation --outdir "$own" "$own/source" >"$own/log" 2>&1 || { cat "$own/log" >&2; exit 1; }
"$python" -m pip --disable-pip-version-check --quiet download --dest "$folder" --only-binary :all: \
  --python-version "$version" "${platforms[@]}" --constraint constraints.txt "$(echo "$own"/*.whl)[$extras]"
