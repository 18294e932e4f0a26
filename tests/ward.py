"""A place to break things in: a fleet, its broker with any configuration, devices, and the two doctors."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import identity
from edge_runtime.coordinator import broker as brokers
from edge_runtime.coordinator import broker_config, pki
from edge_runtime.identity import Identity

AGENT, COORDINATOR = "edge_runtime.cli", "edge_runtime.coordinator.cli"
Found = dict[str, dict[str, Any]]
"""What a doctor said, by check."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Ward:
    """A working folder with a fleet and a home for what lasts, and the processes that were started there."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack, self.port = folder, stack, free_port()
        self.fleet = pki.create(folder / "fleet", "default", ["127.0.0.1"], self.port)
        self.environment = {
            **os.environ, "XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")
        }  # fmt: skip

    def enrolled(self, name: str, fleet: pki.Fleet | None = None) -> Identity:
        return self.installed(name, (fleet or self.fleet).enroll(name))

    def installed(self, name: str, bundle: bytes) -> Identity:
        path = self.folder / f"{name}.edge"
        path.write_bytes(bundle)
        return identity.install(path, self.folder / "state" / "edge-runtime" / "identities" / name)

    def broker(self, kind: str = "mosquitto") -> brokers.Broker:
        """Start a broker as `edge-coordinator broker` does."""
        made = brokers.start(kind, "127.0.0.1", self.port, folder=self.folder / "broker", fleet=self.fleet)
        return self.stack.enter_context(made)

    def mosquitto(self, *lines: str, secured: bool = True, rules: str | None = None) -> None:
        """Start a Mosquitto with these lines in its configuration; `rules`: of its ACL file, None: without one."""
        folder = self.folder / "mosquitto"
        folder.mkdir()
        (folder / "acl").write_text(rules or "")
        conf = [f"listener {self.port} 127.0.0.1", "user root", *lines]
        if secured:
            certificates = self.fleet.broker.resolve()
            text = broker_config.secured(certificates, certificates / "crl.pem", folder / "acl")
            conf += [line for line in text.splitlines() if rules is not None or not line.startswith("acl_file")]
        else:
            conf.append("allow_anonymous true")
        (folder / "mosquitto.conf").write_text("\n".join(conf) + "\n")
        command = [str(brokers.find_mosquitto()), "-c", str(folder / "mosquitto.conf")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)
        self.wait_for_port()

    def wait_for_port(self) -> None:
        deadline_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                assert time.monotonic() < deadline_s, "the broker does not come up"
                time.sleep(0.02)
            else:
                return

    def usual_rules(self) -> str:
        return broker_config.acl(broker_config.rules(self.fleet), self.fleet.revoked_names())

    def run(self, program: str, *arguments: str, before: Sequence[str] = (), **more: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*before, sys.executable, "-m", program, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **more},
            check=False,
            timeout=200,
        )
        return done.returncode, done.stdout, done.stderr

    def start(self, program: str, *arguments: str, before: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
        log = self.stack.enter_context((self.folder / f"{arguments[0]}.log").open("wb"))
        process = subprocess.Popen(
            [*before, sys.executable, "-m", program, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=log,
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)
        return process

    def doctor(
        self, *arguments: str, program: str = AGENT, before: Sequence[str] = (), **more: str
    ) -> tuple[int, Found]:
        """Ask a doctor; gives the exit code, and what each check came to."""
        code, out, said = self.run(program, "doctor", "--json", *arguments, before=before, **more)
        assert out, said
        record = json.loads(out)
        assert (record["schema"], record["exit_code"]) == ("edge-runtime/doctor/1", code)
        return code, {check["check"]: check for check in record["checks"]}

    def data(self, name: str = "data", samples: int = 20, **changes: Any) -> Path:
        """Write a device's data; `changes` are arrays of train.npz."""
        folder, rng = self.folder / name, np.random.default_rng(0)
        folder.mkdir()
        x, y = rng.normal(size=(samples, 6, 100)).astype(np.float32), np.arange(samples) % 2
        np.savez(folder / "test.npz", x=x, y=y)
        np.savez(folder / "train.npz", **{"x": x, "y": y, **changes})
        return folder


def verdicts(found: Found) -> dict[str, str]:
    return {name: check["verdict"] for name, check in found.items()}
