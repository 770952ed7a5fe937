"""Real servers in a process of their own, for as long as a ``with`` lasts."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LLAMA_CPP = """
import sys, threading
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.hostnames, parameters.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads, parameters.n_gpu_layers = 512, 2, 1, 0
parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
parameters.warmup = False
server = xllamacpp.Server(parameters)
threading.Event().wait()
"""


def llama_cpp(gguf: str, port: int) -> list[str]:
    """Gives log-probs, of weights and a cache in float32."""
    return [sys.executable, "-c", LLAMA_CPP, gguf, str(port)]


def transformers_serve(folder: str, port: int) -> list[str]:
    """Gives none."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: Sequence[str], port: int, folder: Path, limit: float) -> Iterator[str]:
    """The base URL of a server, once it is healthy; its log is in ``folder``."""
    log = folder / "server.log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hub")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=folder, start_new_session=True
        )
    try:
        _until_healthy(f"http://127.0.0.1:{port}/health", process, log, time.monotonic() + limit)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _stop(process)


def _until_healthy(url: str, process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"The server is not there:\n{log.read_text(errors='replace')[-3000:]}") from None
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, how)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
    process.wait(10)
