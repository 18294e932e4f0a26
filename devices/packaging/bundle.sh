#!/usr/bin/env bash
# Make an archive with all wheels for a device that reaches no package index, and a script that installs them.
#   bundle.sh MACHINE PYTHON [EXTRAS [FOLDER]]    bundle.sh aarch64 3.11 onnx dist
set -euo pipefail
machine=$1 version=$2 extras=${3:-onnx} out=$(realpath -m "${4:-dist}")
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

release=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' ../../edge_runtime/__init__.py)
name=edge-runtime-$release-py$version-$machine
[ "$extras" = onnx ] || name+=-${extras//,/-}
./wheels.sh "$machine" "$version" "$extras" "$scratch/$name/wheels"
sed "s/@PYTHON@/$version/; s/@MACHINE@/$machine/; s/@EXTRAS@/$extras/" install.sh >"$scratch/$name/install.sh"
chmod 755 "$scratch/$name/install.sh"
mkdir -p "$out"
tar -C "$scratch" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" \
  -cf "$out/$name.tar" "$name" # wheels are compressed already
echo "$out/$name.tar"
