#!/usr/bin/env bash
# Try in clean Debian systems, made by debootstrap, what README.md and docs/install.md tell a person to type.
#   try.sh              all of them:
#   try.sh readme       the README's second section, from an empty system to a report
#   try.sh package      the agent's Debian package: install, start as systemd does, train, stop, upgrade, remove, purge
#   try.sh coordinator  the coordinator's, as a service with a Mosquitto of its own: a run that is killed, and purge
# Needs root, debootstrap, systemd-nspawn and mosquitto; exits with 77 where one of them is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
lacks() { echo "skipped: $*" >&2; exit 77; }
[ "$(id -u)" -eq 0 ] || lacks 'only root may make a system'
for program in debootstrap systemd-nspawn mosquitto; do
  PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || lacks "$program is not here"
done
# Mounts of its own, which go with it.
[ -n "${TRIED_APART:-}" ] || TRIED_APART=1 exec unshare --mount --propagation private "$0" "$@"

python=$(realpath -s "${PYTHON:-.venv/bin/python}")
suite=bookworm version=3.11 # whose Python that is
cache=${XDG_CACHE_HOME:-$HOME/.cache}/edge-runtime/try
scratch=$(mktemp -d /var/tmp/edge-try.XXXXXX)
mount -t tmpfs -o size=6G,mode=755 edge-try "$scratch" # what dpkg writes it waits for, which takes minutes on a disk
started=()
clean_up() {
  local pid
  for pid in "${started[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  umount -R --lazy "$scratch"
  rmdir "$scratch"
}
trap clean_up EXIT
say() { printf -- '-- %s (%s s)\n' "$*" "$SECONDS"; }
fail() { echo "FAIL: $*" >&2; exit 1; }

# An empty system: $1 is its folder, the rest what is installed beside the minimum.
system() {
  local root=$scratch/$1 include=${2:-} kept mirror
  kept=$cache/$suite${include:+-$include}.tar
  if [ ! -e "$kept" ]; then
    mkdir -p "$cache"
    mirror=$({ cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true; } |
      sed -n -E 's/^URIs: *([^ ]+).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+).*/\2/p' | head -n 1)
    debootstrap --variant=minbase ${include:+--include="$include"} "$suite" "$root" "$mirror" >"$scratch/log" 2>&1 ||
      { tail -n 5 "$scratch/log" >&2; lacks 'debootstrap failed'; }
    tar -C "$root" --numeric-owner -cf "$kept.new" . && mv "$kept.new" "$kept"
    rm -rf --one-file-system "$root"
  fi
  mkdir -p "$root"
  tar -C "$root" --numeric-owner -xf "$kept"
  # This machine's way to packages: name server, certificates, mirrors, and what pip is told.
  cp -L /etc/resolv.conf "$root/etc/resolv.conf"
  cp -L /etc/hosts "$root/etc/hosts"
  mkdir -p "$root/etc/ssl/certs" "$root/root/.config/pip"
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" 2>/dev/null || true
  cp -L /etc/pip.conf "$root/etc/" 2>/dev/null || true
}

mounted() {
  mount -t proc proc "$1/proc"
  mount --rbind /dev "$1/dev"
}

# A command in a system that does not run, with nothing of this shell's.
inside() {
  local root=$1
  shift
  chroot "$root" env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$@"
}

try_readme() {
  local root=$scratch/readme
  system readme ca-certificates
  mounted "$root"
  mkdir "$root/root/edge-runtime"
  git ls-files -z | tar --null -T - -cf - | tar -C "$root/root/edge-runtime" -xf -
  awk '/^## /{section++} section == 2 && /^```/{if (++fences == 2) exit; next} fences == 1' README.md >"$root/root/typed"
  say 'what is typed:' && cat "$root/root/typed"
  inside "$root" setsid bash -ec 'cd /root/edge-runtime && . /root/typed' >"$scratch/said" 2>&1 </dev/null &
  started+=($!)
  wait $! || { tail -n 20 "$scratch/said"; fail 'the commands of the README'; }
  for pid in $(cd /proc && ls -d [0-9]*); do # the device in the background
    [ "$(readlink "/proc/$pid/root" 2>/dev/null)" != "$root" ] || kill "$pid" || true
  done
  tail -n 12 "$scratch/said"
  "$python" - "$root/root/edge-runtime/runs/latest/report.json" <<'END'
import json, sys
report = json.load(open(sys.argv[1]))
(device,) = report["devices"]
assert device["id"] == "gateway-7" and report["broker"] == "mosquitto", report
assert device["training_rounds"] == report["rounds"], report
print(f"gateway-7: {device['training_rounds']} rounds, {100 * device['accuracy_personal']:.1f} % by its own model")
END
  say 'the README, as it is written'
}

# What systemd starts in a system: every command in it is run by `within`.
boot() {
  local root=$1
  systemd-nspawn --quiet --register=no --keep-unit --link-journal=no --machine=edge-try --directory="$root" --boot \
    >"$scratch/console" 2>&1 </dev/null &
  started+=($!)
  disown
  for _ in $(seq 100); do
    leader=$(pgrep -P "$!" | head -n 1 || true)
    if [ -n "$leader" ] && within systemctl is-system-running >"$scratch/state" 2>/dev/null; then return; fi
    ! grep -qs degraded "$scratch/state" || return 0
    sleep 0.3
  done
  tail -n 20 "$scratch/console" >&2
  lacks 'systemd does not come up in a container here'
}
within() { nsenter --target "$leader" --mount --uts --ipc --pid --root --wd=/ env -i HOME=/root LANG=C.UTF-8 \
  PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
until_active() {
  for _ in $(seq 300); do ! within systemctl --quiet is-active "$1" || return 0; sleep 0.2; done
  within journalctl -u "$1" -n 20 --no-pager >&2
  fail "the service $1 does not become active"
}

try_package() {
  local root=$scratch/package server=$scratch/server port=18883 before after
  local coordinator=("$python" -m edge_runtime.coordinator.cli)
  system package systemd,dbus
  PYTHON=$python devices/packaging/deb.sh edge-agent x86_64 "$version" "$scratch"
  newer "$scratch"/edge-agent_*_amd64.deb "$root/root/newer.deb"
  cp "$scratch"/edge-agent_*_amd64.deb "$root/root/edge-agent.deb"
  say 'the package is there'

  mkdir -p "$server" "$root/srv/sensors"
  cd "$server"
  "${coordinator[@]}" device enroll gateway-7 --host localhost -p "$port"
  cp gateway-7.edge "$root/root/"
  "$python" - "$root/srv/sensors" <<'END'
import sys, numpy as np
from pathlib import Path
from edge_runtime.datasets import watch
x, y, x_test, y_test = watch.parts(watch.find())[4]
np.savez(Path(sys.argv[1]) / "train.npz", x=x, y=y)
np.savez(Path(sys.argv[1]) / "test.npz", x=x_test, y=y_test)
END
  chmod -R a+rX "$root/srv/sensors"
  XDG_STATE_HOME=$server "${coordinator[@]}" broker --kind mosquitto >/dev/null &
  started+=($!)
  disown

  boot "$root"
  say 'systemd runs in a clean system'
  within apt-get update -qq
  listed "$root" >"$scratch/before"
  within apt-get install -y -qq --no-install-recommends /root/edge-agent.deb >"$scratch/log" 2>&1 ||
    { tail "$scratch/log"; fail 'apt-get install'; }
  within edge-agent --version
  within edge-agent install --memory-mb 500 -- --identity /root/gateway-7.edge --data /srv/sensors
  until_active edge-agent
  within systemctl show -p MainPID,User,DynamicUser,MemoryMax,CPUQuotaPerSecUSec,WatchdogUSec edge-agent
  within systemd-analyze security --no-pager --threshold=25 edge-agent | tail -n 1
  say 'installed, enrolled, and let in by the broker'
  train 2

  within systemctl stop edge-agent
  ! within systemctl --quiet is-active edge-agent || fail 'it does not stop'
  within systemctl start edge-agent
  before=$(learnt "$root")
  within apt-get install -y -qq --no-install-recommends /root/newer.deb >"$scratch/log" 2>&1 ||
    { tail "$scratch/log"; fail 'the upgrade'; }
  until_active edge-agent
  [ "$(within edge-agent --version)" = 99.0 ] || fail 'the upgrade brought no other version'
  after=$(learnt "$root")
  [ -n "$before" ] || fail 'nothing was learnt'
  [ "$before" = "$after" ] || fail "state has changed: $before, then $after"
  train 1
  say 'stopped, started, upgraded with its state kept, trained again'

  within apt-get remove -y -qq edge-agent >"$scratch/log" 2>&1 || { cat "$scratch/log"; fail 'apt-get remove'; }
  ! within systemctl --quiet is-active edge-agent || fail 'removed, it still runs'
  [ ! -e "$root/etc/systemd/system/edge-agent.service" ] || fail 'removed, its unit is there'
  [ -n "$(learnt "$root")" ] || fail 'removing has lost the state'
  purge "$root" edge-agent
  cd - >/dev/null
}

try_coordinator() {
  local root=$scratch/coordinator device=$scratch/device port=18884 ended state=/var/lib/edge-coordinator
  system coordinator systemd,dbus
  PYTHON=$python devices/packaging/deb.sh edge-coordinator x86_64 "$version" "$scratch"
  cp "$scratch"/edge-coordinator_*_amd64.deb "$root/root/edge-coordinator.deb"
  say 'the package is there'

  boot "$root"
  within systemctl mask mosquitto # the service has one of its own
  within apt-get update -qq
  within apt-get install -y -qq --no-install-recommends mosquitto >"$scratch/log" 2>&1 || fail 'apt-get install mosquitto'
  listed "$root" >"$scratch/before"
  within apt-get install -y -qq --no-install-recommends /root/edge-coordinator.deb >"$scratch/log" 2>&1 ||
    { tail "$scratch/log"; fail 'apt-get install'; }
  within install -d -m 700 "$state"
  within env -C "$state" edge-coordinator device enroll gateway-8 --host localhost -p "$port"
  within edge-coordinator install --memory-mb 1000 -- --broker mosquitto --rounds 6
  mkdir "$device"
  mv "$root$state/gateway-8.edge" "$device"
  XDG_STATE_HOME=$device "$python" -m edge_runtime.cli start --wait --identity "$device/gateway-8.edge" --data watch &
  started+=($!)
  disown
  until_active edge-coordinator
  within systemctl show -p MainPID,User,DynamicUser,MemoryMax,WatchdogUSec edge-coordinator
  until_said 'round 2/6'
  within systemctl kill --signal KILL edge-coordinator
  say 'installed, and killed in the middle of a run'
  until_said 'report: run/report.html'
  "$python" - "$root$state/run/report.json" <<'END'
import json, sys
report = json.load(open(sys.argv[1]))
(device,) = report["devices"]
assert device["id"] == "gateway-8" and device["training_rounds"] == report["rounds"] == 6, report
print(f"gateway-8: {device['training_rounds']} rounds, {100 * device['accuracy_personal']:.1f} % by its own model")
END
  for _ in $(seq 100); do
    ended=$(within systemctl show --value -p ActiveState edge-coordinator)
    [ "$ended" != inactive ] || break
    sleep 0.2
  done
  [ "$ended" = inactive ] || fail "it is $ended when its run is over"
  purge "$root" edge-coordinator
}

# Wait until the coordinator has said that.
until_said() {
  for _ in $(seq 600); do
    ! within journalctl -u edge-coordinator --no-pager -o cat | grep -F "$1" || return 0
    sleep 0.2
  done
  within journalctl -u edge-coordinator -n 30 --no-pager >&2
  fail "the coordinator does not say '$1'"
}

# Of a package that is installed or was removed; nothing is to be left in $1.
purge() {
  within apt-get purge -y -qq --autoremove "$2" >"$scratch/log" 2>&1 || { cat "$scratch/log"; fail 'apt-get purge'; }
  listed "$1" >"$scratch/after"
  ! diff "$scratch/before" "$scratch/after" || say 'nothing is left but what is shown above'
  ! grep -i edge- "$scratch/after" || fail 'that is left'
  say 'removed and purged: nothing is left'
}

# The same package, called newer.
newer() {
  local tree=$scratch/newer
  dpkg-deb --raw-extract "$1" "$tree"
  sed -i 's/^Version: .*/Version: 99.0/' "$tree/DEBIAN/control"
  sed -i 's/^__version__ = .*/__version__ = "99.0"/' "$tree"/opt/*/lib/*/site-packages/edge_runtime/__init__.py
  dpkg-deb --root-owner-group -Znone --build "$tree" "$2" >/dev/null
  rm -rf "$tree"
}

# What the package, its service and apt leave: all but logs, caches, what systemd keeps for itself and what was put there.
listed() {
  find "$1" -xdev \( -path "$1/proc" -o -path "$1/sys" -o -path "$1/dev" -o -path "$1/run" -o -path "$1/tmp" \
    -o -path "$1/var/tmp" -o -path "$1/var/log" -o -path "$1/var/cache" -o -path "$1/var/lib/apt" -o -path "$1/var/lib/dpkg" \
    -o -path "$1/root" -o -path "$1/srv" \) -prune -o -printf '%P\n' | sort
}

# The personal models of the device.
learnt() { find "$1/var/lib/private/edge-agent" -path '*/personal/*' -type f -exec sha256sum {} + 2>/dev/null | sort; }

# A run of $1 rounds by a coordinator outside.
train() {
  XDG_STATE_HOME=$server "${coordinator[@]}" start --rounds "$1" --folder "$server/run-$1" --json >"$scratch/report"
  "$python" - "$scratch/report" "$1" <<'END'
import json, sys
report = json.load(open(sys.argv[1]))
(device,) = report["devices"]
assert device["id"] == "gateway-7" and device["training_rounds"] == int(sys.argv[2]), report
print(f"gateway-7: {device['training_rounds']} rounds, {100 * device['accuracy_personal']:.1f} % by its own model")
END
}

for part in "${@:-readme package coordinator}"; do
  for one in $part; do "try_$one"; done
done
