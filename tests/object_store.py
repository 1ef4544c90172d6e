"""A server that speaks S3's protocol, moto's, as a process of its own on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from itertools import count

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDFORTESTS",
    "AWS_SECRET_ACCESS_KEY": "secret-for-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_numbers = count()


class Server:
    """One that is started and stopped; what it holds, it holds in memory."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = [sys.executable, "-m", "moto.server", "--port", str(self.port)]
        self._process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 120
        while True:
            with suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=10).close()
                return
            assert self._process.poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it; nothing it held is left."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """From now on connections are taken, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answer again, with all that it holds."""
        self._process.send_signal(signal.SIGCONT)

    def bucket(self) -> str:
        """The URL of a new bucket."""
        name = f"bucket-{os.getpid()}-{next(_numbers)}"
        made = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(made, timeout=60).close()
        return f"s3://{name}"
