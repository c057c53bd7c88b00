"""`python -m deploy.local start | stop | status`: a Kafka and a Redis that outlive the command."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

from deploy.local.processes import LocalServiceError, Server, end_group
from deploy.local.services import LocalServices

_RECORD = "services.json"
_GRACE_S = 20.0


def _default_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ecg-stream-worker" / "local"


def _recorded(directory: Path) -> dict[str, Server]:
    path = directory / _RECORD
    return {name: Server(**known) for name, known in json.loads(path.read_text()).items()} if path.exists() else {}


def start(directory: Path, as_json: bool) -> int:
    running = _recorded(directory)
    if any(server.alive for server in running.values()):
        print(f"already running (stop them with: python -m deploy.local stop --dir {directory})", file=sys.stderr)
        return _say(running, as_json)
    shutil.rmtree(directory / "kafka", ignore_errors=True)  # each start is a new, empty cluster
    print("Starting Kafka and Redis ...", file=sys.stderr, flush=True)
    begun = time.monotonic()
    services = LocalServices(directory, keep=True).start()
    (directory / _RECORD).write_text(json.dumps({name: asdict(server) for name, server in services.servers.items()}))
    print(f"ready after {time.monotonic() - begun:.1f} s; data, logs and pids in {directory}", file=sys.stderr)
    return _say(services.servers, as_json)


def stop(directory: Path) -> int:
    for name, server in _recorded(directory).items():
        print(f"{name}: {'stopping' if server.alive else 'was not running any more'}", file=sys.stderr)
        end_group(server, _GRACE_S)
    (directory / _RECORD).unlink(missing_ok=True)
    return 0


def status(directory: Path, as_json: bool) -> int:
    """Exit code 0 when both run, 3 when not (as service managers have it)."""
    alive = {name: server for name, server in _recorded(directory).items() if server.alive}
    _say(alive, as_json)
    if len(alive) == 2:
        return 0
    print(
        f"{', '.join({'kafka', 'redis'} - set(alive))}: not running (start with: python -m deploy.local start)", file=sys.stderr
    )
    return 3


def _say(servers: dict[str, Server], as_json: bool) -> int:
    addresses = {name: server.address for name, server in servers.items()}
    if as_json:
        print(json.dumps(addresses))
    else:
        for name, address in sorted(addresses.items()):
            print(f"ECG_{name.upper()}={address}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("--dir", type=Path, default=_default_directory(), help="where data, logs and pids are kept")
    parser.add_argument("--json", action="store_true", help="addresses as one JSON object instead of NAME=value lines")
    given = parser.parse_args(arguments)
    directory = given.dir.resolve()
    try:
        if given.action == "start":
            return start(directory, given.json)
        return stop(directory) if given.action == "stop" else status(directory, given.json)
    except LocalServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
