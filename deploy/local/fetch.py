"""Kafka's jars: fetched once by Maven into a cache folder, complete or not at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deploy.local.processes import LocalServiceError

__all__ = ["KAFKA_VERSION", "java", "kafka_jars"]

KAFKA_VERSION = "4.3.1"
_JAVA_AT_LEAST = 17


def java() -> str:
    """The path of a Java runtime that can run the broker."""
    home = os.environ.get("JAVA_HOME")
    path = shutil.which("java", path=f"{home}/bin" if home else None) or shutil.which("java")
    wanted = f"Kafka {KAFKA_VERSION} needs Java {_JAVA_AT_LEAST} or newer (Debian: apt-get install openjdk-17-jre-headless)"
    if path is None:
        raise LocalServiceError(f"no java found; {wanted}")
    said = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < _JAVA_AT_LEAST:
        raise LocalServiceError(f"{path} is Java {version[1] if version else 'of unknown version'}; {wanted}")
    return path


def kafka_jars(cache: Path | None = None) -> Path:
    """The folder with the broker's jars; fetches them on first use (about 45 MB)."""
    root = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ecg-stream-worker"
    folder = root / f"kafka-{KAFKA_VERSION}"
    if folder.is_dir():
        return folder
    mvn = shutil.which("mvn")
    if mvn is None:
        raise LocalServiceError("no mvn found; Maven fetches the broker (Debian: apt-get install maven)")
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="fetching-", dir=root))
    try:
        _copy_dependencies(mvn, partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have been first: its copy is as good
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _copy_dependencies(mvn: str, into: Path) -> None:
    pom = Path(__file__).with_name("pom.xml")
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={into}"]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen([mvn, "-B", "-q", "-f", str(pom), *goal], stdout=said, stderr=subprocess.STDOUT)
        try:
            _show_seconds(child, f"Fetching Kafka {KAFKA_VERSION} with Maven, 45 MB")
        finally:
            child.kill()
            child.wait()
        if child.returncode != 0:
            said.seek(0)
            raise LocalServiceError(f"Maven could not fetch Kafka {KAFKA_VERSION}:\n{said.read()[-2000:]}")


def _show_seconds(child: subprocess.Popen[bytes], what: str) -> None:
    """Count the seconds on a terminal, or say once what is going on."""
    begun = time.monotonic()
    live = sys.stderr.isatty()
    print(what, "...", end="" if live else "\n", file=sys.stderr, flush=True)
    while child.poll() is None:
        if live:
            print(f"\r{what} ... {time.monotonic() - begun:3.0f} s", end="", file=sys.stderr, flush=True)
        time.sleep(0.2)
    if live:
        print(file=sys.stderr)
