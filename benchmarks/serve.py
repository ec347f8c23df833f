"""What a server adds: to the first frame, to a render while many look on, to a job's start.

.venv/bin/python -P benchmarks/serve.py first      # first frame, warm: in process, HTTP, Ray
.venv/bin/python -P benchmarks/serve.py load       # 200 clients poll and 20 stream for 60 s
.venv/bin/python -P benchmarks/serve.py job        # from `submit` to a running job
"""

import argparse
import atexit
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
# where servers of tests keep what encoders make of prompts
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="longreel-benchmark-")

from crowd import WATCHERS, Seen, look_on, stand_in
from server import serving, until
from texts import TEXTS

import longreel

HOME = Path(os.environ["XDG_DATA_HOME"])
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

# so small that one core makes frames faster than they are played
SMALL = {
    "video.height": 64,
    "video.width": 96,
    "video.fps": 8,
    "sampling.steps": 4,
    "blocks.policy": "forcing",
    "blocks.size": 2,
}


def first_frame(home: Path, runs: int) -> None:
    """From the request to the first segment on disk, with the model loaded already."""
    from longreel.jobs.home.home import Home
    from longreel.jobs.home.record import RenderRun
    from longreel.jobs.render import plan_render
    from longreel.jobs.serve.warm import WarmBackends

    overrides = [f"{key}={value}" for key, value in SMALL.items()] + [f"model.text_cache={TEXTS}"]
    warm, alone = WarmBackends(), Home(home / "alone")

    def in_process(seed: int) -> float:
        start = time.monotonic()
        folder = alone.create(
            plan_render("a red circle", preset="tiny", frames=9, seed=seed, overrides=overrides)
        )
        RenderRun(folder, open_backend=warm.open).run()
        events = folder.segments()
        assert events[0].first == 0
        return (folder.path / "segments" / "000000.m4s").stat().st_mtime - wall(start)

    def over_http(client: longreel.Client, seed: int) -> float:
        start = time.monotonic()
        render = client.render("a red circle", frames=9, seed=seed, settings=SMALL)
        next(render.frames())
        took = time.monotonic() - start
        render.wait()
        return took

    cluster = ("parallel.backend=ray", "parallel.num_stages=2", "model.device=cpu")
    with (
        serving(home / "home") as near,
        serving(home / "ray", *cluster) as far,
        longreel.Client(near.url) as http,
        longreel.Client(far.url) as ray,
    ):
        cold_s = over_http(ray, 0)
        in_process(0), over_http(http, 0)
        seeds = range(1, runs + 1)
        times = [(in_process(s), over_http(http, s), over_http(ray, s)) for s in seeds]
    alone_s, http_s, ray_s = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"first frame, medians of {runs}: in process {alone_s:.3f} s")
    for what, took_s in (("", http_s), (" over two stages on Ray", ray_s)):
        print(f"  HTTP{what}: {took_s:.3f} s, ratio {took_s / alone_s:.2f} (at most 1.3)")
    print(f"  the first render over Ray, with nothing warm: {cold_s:.1f} s")
    print(f"load {os.getloadavg()[0]:.1f}")


def wall(monotonic: float) -> float:
    return time.time() - (time.monotonic() - monotonic)


def load(home: Path, seconds: float) -> None:
    """The render's pace while 220 clients look on, and while they look at a stand-in that costs
    next to nothing; between them, and before and after, while nobody does."""
    with serving(home / "home") as server, httpx.Client(base_url=server.url, timeout=60) as http:
        made = http.post(
            "/api/v1/renders",
            json={"prompt": "a red circle", "frames": 40001, "settings": SMALL},
        ).json()
        path = f"/api/v1/renders/{made['id']}"

        def step() -> int:
            return int(http.get(path).json()["progress"]["step"])

        def pace(while_: Callable[[], Seen | None]) -> tuple[float, Seen | None]:
            start, first = time.monotonic(), step()
            seen = while_()
            return (step() - first) / (time.monotonic() - start), seen

        def quiet() -> None:
            time.sleep(seconds / 2)

        until(step, lambda now: now > 20)
        before, _ = pace(quiet)
        watched, seen = pace(lambda: look_on(server.url, path, seconds))
        between, _ = pace(quiet)
        assert seen is not None
        status_bytes = len(http.get(path).content)
        with stand_in(status_bytes, seen.streamed / seconds / WATCHERS) as url:
            aside, _ = pace(lambda: look_on(url, path, seconds))
        after, _ = pace(quiet)
        http.post(f"{path}/cancel")
        http.get(path)
    waits = sorted(seen.waits_ms)
    print(
        f"{len(waits)} status calls, {seen.errors} errors, median {statistics.median(waits):.1f} "
        f"ms, p95 {waits[int(0.95 * len(waits))]:.1f} ms (under 100), "
        f"{seen.streamed / 1e6:.1f} MB streamed"
    )
    with_all = watched / statistics.mean((before, between))
    with_clients = aside / statistics.mean((between, after))
    print(
        f"steps a second: before {before:.1f}, with 220 clients {watched:.1f}, between "
        f"{between:.1f}, with the clients at a stand-in {aside:.1f}, after {after:.1f}\n"
        f"of the pace: with server and clients {with_all:.3f}, with the clients {with_clients:.3f}"
        f"; the server's own {with_all / with_clients:.3f} (at least 0.9)   "
        f"load {os.getloadavg()[0]:.1f}"
    )


def job(home: Path, runs: int) -> None:
    """Of a cluster that is there: until its driver has said that it started."""
    from ray_head import ray_head

    from longreel.jobs.submit.errand import Errand
    from longreel.jobs.submit.jobs_client import Jobs

    with ray_head(home) as (url, environment):
        os.environ |= {k: environment[k] for k in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        jobs, times = Jobs(url), []
        for number in range(runs + 1):
            start = time.monotonic()
            errand = Errand(
                render=f"render-{number}", home=str(home / "home"), prompt="a red circle", frames=1
            )
            jobs.submit(errand)
            until(lambda r=errand.render: jobs.view(r).state, lambda s: s == "running", every_s=0.1)
            times.append(time.monotonic() - start)
            until(lambda r=errand.render: jobs.view(r).over, bool)
    later = statistics.median(times[1:])
    print(
        f"submit to running: first {times[0]:.1f} s, then median {later:.1f} s of {runs} (under 5)"
    )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("first", "load", "job"))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0)
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if asked.what == "load":
        load(HOME, asked.seconds)
    else:
        {"first": first_frame, "job": job}[asked.what](HOME, asked.runs)
