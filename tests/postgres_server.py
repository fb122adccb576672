"""A private PostgreSQL server for tests: its own folder, user, port on loopback and password; gone with the process."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

USER = "lab"
DEADLINE_SECONDS = 60.0

_INITDB = ("--no-sync", "-E", "UTF8", "--locale=C")


@dataclass(frozen=True)
class Server:
    """A running server; every test takes a database of its own."""

    port: int
    password: str
    programs: Path
    folder: Path

    def url(self, database: str, user: str = USER) -> str:
        """Where a database is, without the password."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def psql(self, sql: str, database: str = "postgres") -> str:
        """What PostgreSQL's own client says to `sql`: the unaligned rows; raises when it fails."""
        command = [
            str(self.programs / "psql"),
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.url(database),
        ]
        environment = {"PGPASSWORD": self.password, "PATH": os.environ["PATH"], "PGTZ": "UTC"}
        done = subprocess.run(command, input=sql, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def new_database(self, name: str | None = None) -> str:
        """Make an empty database and give its URL."""
        name = name or f"lab_{secrets.token_hex(4)}"
        self.psql(f'DROP DATABASE IF EXISTS "{name}"')
        self.psql(f'CREATE DATABASE "{name}"')
        return self.url(name)


@functools.cache
def shared() -> Server:
    """The one server of this process, started when it is first asked for; skips the test where there can be none."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    owner = _owner()
    if owner is None:
        pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it")
    folder = Path(tempfile.mkdtemp(prefix="yieldlab-postgres-"))
    if owner.pw_uid != os.geteuid():
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    password, port = secrets.token_hex(12), _free_port()
    secret = folder / "password"
    secret.write_text(password)
    secret.chmod(0o644)
    as_owner: dict[str, object] = {"cwd": folder}
    if owner.pw_uid != os.geteuid():
        as_owner |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", *_INITDB],
        check=True,
        capture_output=True,
        **as_owner,
    )
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": folder,
        "fsync": "off",
        "max_connections": 20,
        "shared_buffers": "32MB",
        "timezone": "Pacific/Auckland",  # no test may pass only because the server happens to live in UTC
    }
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            programs / "postgres",
            "-D",
            data,
            *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        **as_owner,
    )
    atexit.register(_stop, process, folder)
    server = Server(port, password, programs, folder)
    _wait(server, process)
    return server


def _programs() -> Path | None:
    """The folder with initdb, postgres and psql."""
    found = shutil.which("initdb")
    candidates = [Path(found).parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next(
        (folder for folder in candidates if all((folder / name).exists() for name in ("initdb", "postgres", "psql"))),
        None,
    )


def _owner() -> pwd.struct_passwd | None:
    """Who the server runs as: this user, unless that is root, whom PostgreSQL refuses."""
    if os.geteuid():
        return pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            server.psql("SELECT 1")
            return
        except RuntimeError as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start: {(server.folder / 'log').read_text()}") from error
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def closed_port() -> Iterator[int]:
    """A port on loopback on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])
