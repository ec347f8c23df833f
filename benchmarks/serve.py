"""What a server adds: to the first frame, to a render while many look on, to a job's start.

.venv/bin/python -P benchmarks/serve.py first      # first frame, warm: in process, HTTP, Ray
.venv/bin/python -P benchmarks/serve.py load       # 200 clients poll and 20 stream for 60 s
.venv/bin/python -P benchmarks/serve.py job        # from `submit` to a running job
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from server import serving, until

import longreel

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

    overrides = [f"{key}={value}" for key, value in SMALL.items()] + ["model.text_cache="]
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
    """The render's pace before, while and after 220 clients look on."""
    with serving(home / "home") as server, httpx.Client(base_url=server.url, timeout=60) as http:
        made = http.post(
            "/api/v1/renders",
            json={"prompt": "a red circle", "frames": 40001, "settings": SMALL},
        ).json()
        path = f"/api/v1/renders/{made['id']}"

        def step() -> int:
            return int(http.get(path).json()["progress"]["step"])

        def pace(for_s: float) -> float:
            start, first = time.monotonic(), step()
            time.sleep(for_s)
            return (step() - first) / (time.monotonic() - start)

        until(step, lambda now: now > 20)
        before = pace(seconds / 2)
        start, first = time.monotonic(), step()
        waits, errors, streamed = asyncio.run(crowd(server.url, path, seconds))
        during = (step() - first) / (time.monotonic() - start)
        after = pace(seconds / 2)
        http.post(f"{path}/cancel")
        http.get(path)
    quiet = (before + after) / 2
    waits.sort()
    print(
        f"{len(waits)} status calls, {errors} errors, median {statistics.median(waits):.1f} ms, "
        f"p95 {waits[int(0.95 * len(waits))]:.1f} ms (under 100), {streamed / 1e6:.1f} MB streamed"
    )
    print(
        f"steps a second: before {before:.1f}, with 220 clients {during:.1f}, after {after:.1f}; "
        f"ratio {during / quiet:.3f} (at least 0.9)   load {os.getloadavg()[0]:.1f}"
    )


async def crowd(url: str, path: str, seconds: float) -> tuple[list[float], int, int]:
    """200 that ask how it stands once a second, 20 that watch it grow."""
    waits: list[float] = []
    errors = streamed = 0
    end = time.monotonic() + seconds

    async def poll(http: aiohttp.ClientSession, number: int) -> None:
        nonlocal errors
        await asyncio.sleep(number / 200)
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                async with http.get(path) as answer:
                    await answer.read()
                    errors += answer.status != 200
            except aiohttp.ClientError:
                errors += 1
            waits.append(1000 * (time.monotonic() - start))
            await asyncio.sleep(max(0.0, 1 - (time.monotonic() - start)))

    async def watch(http: aiohttp.ClientSession) -> None:
        nonlocal errors, streamed
        try:
            async with asyncio.timeout(end - time.monotonic()), http.get(f"{path}/video") as video:
                async for data in video.content.iter_any():
                    streamed += len(data)
        except TimeoutError:
            pass
        except aiohttp.ClientError:
            errors += 1

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as http:
        await asyncio.gather(
            *(poll(http, i) for i in range(200)), *(watch(http) for _ in range(20))
        )
    return waits, errors, streamed


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
    with tempfile.TemporaryDirectory() as folder:
        if asked.what == "load":
            load(Path(folder), asked.seconds)
        else:
            {"first": first_frame, "job": job}[asked.what](Path(folder), asked.runs)
