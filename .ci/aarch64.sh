#!/usr/bin/env bash
# Does aarch64 read the same from what is coded here? Emulated by qemu-user, with a Python and wheels of that machine in
# a folder of their own: nothing is installed. Needs a Debian or Ubuntu with apt-get, dpkg and pip.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-runtime/aarch64}

if [ ! -e "$folder/ready" ]; then
  echo "Fetching an emulator, and Python, numpy and zstandard for aarch64, into $folder ..."
  mkdir -p "$folder"/{state/lists/partial,cache/archives/partial,debs,root,emulator,wheels,site}
  touch "$folder/status"
  arm=(-o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$folder/state"
    -o Dir::Cache="$folder/cache" -o Dir::State::status="$folder/status")
  version=$(dpkg-query -W -f '${Version}' libpython3-stdlib 2>/dev/null | cut -d. -f1,2 || true)
  version=${version:-3.11}
  (
    cd "$folder/debs"
    apt-get "${arm[@]}" -qq update
    apt-get "${arm[@]}" -qq download "python$version-minimal" "libpython$version-minimal" "libpython$version-stdlib" \
      libc6 zlib1g libexpat1 libgcc-s1 libstdc++6 libssl3 libffi8 liblzma5 libbz2-1.0 2>/dev/null
    for deb in *_arm64.deb; do dpkg -x "$deb" "$folder/root"; done
    apt-get -qq download qemu-user-static 2>/dev/null
    dpkg -x qemu-user-static*.deb "$folder/emulator"
  )
  "$python" -m pip --disable-pip-version-check --quiet download --no-deps --only-binary :all: --dest "$folder/wheels" \
    --python-version "$version" --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 --constraint constraints.txt numpy zstandard
  for wheel in "$folder"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$folder/site"; done
  echo "$version" >"$folder/ready"
fi

coded=$(mktemp)
trap 'rm -f "$coded"' EXIT
"$python" -m tests.across write "$coded"
"$folder/emulator/usr/bin/qemu-aarch64-static" -L "$folder/root" -E PYTHONHOME=/usr -E PYTHONDONTWRITEBYTECODE=1 \
  -E PYTHONPATH="$PWD:$folder/site" "$folder/root/usr/bin/python$(cat "$folder/ready")" -m tests.across check "$coded"
