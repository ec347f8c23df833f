"""A Ray head of its own with a dashboard, as `ray start --head` starts it, and its token."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
from processes import ended_with_us

_START_S = 180.0


def free_ports(count):
    """All taken at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def ray_head(folder: Path, num_cpus: int = 4, bin_folder: Path = Path(sys.executable).parent):
    """Its dashboard's URL, and the environment that a client of it needs.

    `bin_folder`: where its `python` and `ray` are.
    """
    gcs, dashboard, client, agent, grpc, env_agent = free_ports(6)
    environment = os.environ | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",  # for a step on a busy machine
        "RAY_worker_niceness": "0",  # else they starve beside anything that works
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    command = [str(bin_folder / "ray"), "start", "--head", "--block", f"--port={gcs}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--dashboard-agent-grpc-port={grpc}", f"--runtime-env-agent-port={env_agent}"]
    command += [f"--num-cpus={num_cpus}", "--num-gpus=0", "--disable-usage-stats"]
    command += [f"--object-store-memory={100 * 2**20}", f"--temp-dir={folder / 'r'}"]
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(
            ended_with_us(command),
            env=environment,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{dashboard}"
    headers = {"authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    try:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                if httpx.get(f"{url}/api/jobs/", headers=headers, timeout=10).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, (folder / "ray.log").read_text()
            assert time.monotonic() < deadline, (folder / "ray.log").read_text()
            time.sleep(0.2)
        yield url, environment
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
