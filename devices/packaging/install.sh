#!/bin/sh
# Install what lies in wheels/ into a folder of its own, without any package index.
#   ./install.sh [FOLDER]        FOLDER is /opt/edge-runtime unless told; the same again upgrades it
set -eu
folder=${1:-/opt/edge-runtime}
cd "$(dirname "$0")"
for python in "${PYTHON:-python3}" python@PYTHON@; do
  found=$("$python" -c 'import platform, sys; print("%d.%d %s" % (*sys.version_info[:2], platform.machine()))' 2>/dev/null) || continue
  [ "$found" = "@PYTHON@ @MACHINE@" ] && break
done
if [ "$found" != "@PYTHON@ @MACHINE@" ]; then
  echo "install.sh: these wheels are for Python @PYTHON@ on @MACHINE@, and here is ${found:-none}: take the bundle for that" >&2
  exit 2
fi
if ! "$python" -m venv "$folder"; then
  echo "install.sh: no virtual environment could be made in $folder: as root, and on Debian: apt install python3-venv" >&2
  exit 2
fi
"$folder/bin/python" -m pip --disable-pip-version-check --quiet install --no-index --find-links wheels \
  --upgrade --force-reinstall --no-deps wheels/*.whl
echo "installed in $folder: $("$folder/bin/edge-agent" --version)"
echo "next: $folder/bin/edge-agent install -- --identity ID.edge --data DIR"
