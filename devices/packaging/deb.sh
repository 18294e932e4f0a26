#!/usr/bin/env bash
# Make a Debian package of one of the programs, with all that it needs but Python itself, in /opt/PROGRAM.
#   deb.sh PROGRAM MACHINE PYTHON [FOLDER]        deb.sh edge-agent aarch64 3.11 dist
set -euo pipefail
program=$1 machine=$2 version=$3 out=$(realpath -m "${4:-dist}")
cd "$(dirname "$0")"
python=$(realpath -s "${PYTHON:-../../.venv/bin/python}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

case $program in
  edge-agent) extras=onnx ;;
  edge-coordinator) extras=onnx,coordinator,broker ;;
  *) echo "deb.sh: no program $program: edge-agent or edge-coordinator" >&2; exit 2 ;;
esac
case $machine in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) echo "deb.sh: no machine $machine: x86_64 or aarch64" >&2; exit 2 ;;
esac

PYTHON=$python ./wheels.sh "$machine" "$version" "$extras" "$scratch/wheels"
root=$scratch/root home=$scratch/root/opt/$program
site=$home/lib/python$version/site-packages
mkdir -p "$home/bin" "$site" "$root/usr/bin" "$root/DEBIAN"
for wheel in "$scratch"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
for data in "$site"/*.data/{pure,plat}lib; do [ ! -d "$data" ] || cp -a "$data/." "$site"; done
rm -rf "$site"/*.data
find "$site" -name tests -type d -prune -exec rm -rf {} + # of numpy above all: a third of all files

# A virtual environment is a folder with this file; of Python it has a link to the system's.
printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$version" >"$home/pyvenv.cfg"
ln -s "/usr/bin/python$version" "$home/bin/python"
module=edge_runtime.cli
[ "$program" = edge-agent ] || module=edge_runtime.coordinator.cli
printf '#!/opt/%s/bin/python\nfrom %s import main\n\nmain()\n' "$program" "$module" >"$home/bin/$program"
ln -s "/opt/$program/bin/$program" "$root/usr/bin/$program"
find "$root" -type d -exec chmod 755 {} +
find "$root" -type f -exec chmod 644 {} +
chmod 755 "$home/bin/$program"

release=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$site/edge_runtime/__init__.py")
next=3.$((${version#3.} + 1))
for script in postinst prerm postrm; do
  sed "s/@PROGRAM@/$program/g" "debian/$script" >"$root/DEBIAN/$script"
  chmod 755 "$root/DEBIAN/$script"
done
{
  sed "s/@PROGRAM@/$program/; s/@VERSION@/$release+py$version/; s/@ARCHITECTURE@/$architecture/
    s/@SIZE@/$(du -sk "$root/opt" | cut -f1)/; s/@PYTHON@/$version/; s/@NEXT@/$next/" debian/control
  [ "$program" = edge-agent ] || echo 'Recommends: mosquitto'
  sed -n 's/^/Description: /;1p' "debian/$program.txt"
  sed '1d; s/^/ /' "debian/$program.txt"
} >"$root/DEBIAN/control"
mkdir -p "$out"
deb=$out/${program}_$release+py${version}_$architecture.deb
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0} dpkg-deb --root-owner-group -Zzstd -z9 --build "$root" "$deb" >/dev/null
echo "$deb"
