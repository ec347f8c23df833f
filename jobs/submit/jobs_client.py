"""The jobs of a cluster, through its dashboard: sent, looked at, ended. Ray's words become ours."""

import json
import logging
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...configs.errors import first_line
from .errand import MARK, Errand, remembered, write_errand

ADDRESS = "http://127.0.0.1:8265"
_STATES = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "STOPPED": "cancelled",
}
_OVER = ("done", "failed", "cancelled")
_POLL_S = 1.0
_ANSWER_S = 60.0  # Ray's client itself would wait for ever
_LOST_S = 600.0  # how long a cluster that does not answer is waited for

_log = logging.getLogger("longreel")


@dataclass(frozen=True, kw_only=True)
class JobView:
    """The newest job of a render."""

    render: str
    job: str
    state: str
    attempt: int
    message: str  # in a line, why it has failed
    progress: dict[str, Any]  # the newest account in its log; empty: none yet

    @property
    def over(self) -> bool:
        return self.state in _OVER


class NoAnswerError(ValueError):
    """Of a cluster, by now."""


class Jobs:
    """Of one cluster. ValueError says that it cannot be reached, or has no such render."""

    def __init__(self, address: str | None = None) -> None:
        """`address`: of its dashboard."""
        self._address = address or ADDRESS
        if not self._address.startswith(("http://", "https://")):
            raise ValueError(
                f"address={address} is no dashboard of a Ray cluster, and jobs go there; give it "
                f"as `ray start --head` prints it, such as {ADDRESS}"
            )
        if find_spec("aiohttp") is None:  # Ray itself says so, as if of the address
            raise ValueError(
                "Ray jobs need what the extra `serve` brings (aiohttp is missing); in the "
                "checkout: pip install -c constraints.txt -e '.[serve]'"
            )
        with self._plainly():
            self._client = _client(self._address)

    def submit(self, errand: Errand, *, cpus: float = 1.0, wheel: Path | None = None) -> str:
        """The job's id: the render's, and which attempt at it this is."""
        attempt = 1 + max((job["attempt"] for job in self._of(errand.render)), default=0)
        job = f"{errand.render}-{attempt}"
        with tempfile.TemporaryDirectory() as folder:
            sent = Path(folder, "errand")
            sent.mkdir()
            write_errand(errand, sent)
            runtime_env: dict[str, Any] = {"working_dir": str(sent)}
            if wheel is not None:
                runtime_env["py_modules"] = [str(unpack_wheel(wheel, Path(folder, "code")))]
            with self._plainly():
                self._client.submit_job(
                    entrypoint=f"python -P -m {__package__}.driver",
                    submission_id=job,
                    runtime_env=runtime_env,
                    metadata={
                        "longreel_render": errand.render,
                        "longreel_attempt": str(attempt),
                        "longreel_home": errand.home or "",
                        "longreel_errand": remembered(errand),
                        "longreel_wheel": "" if wheel is None else wheel.name,
                    },
                    entrypoint_num_cpus=cpus,
                )
        return job

    def submit_again(self, render: str, *, wheel: Path | None = None) -> str:
        """Another attempt at a render whose last job is over: it goes on from its folder."""
        newest = self._newest(render)
        if _STATES[newest["status"]] not in _OVER:
            raise ValueError(
                f"render {render} is being made by job {newest['job']}, and two would write over "
                "each other; cancel that one first"
            )
        if newest["wheel"] and wheel is None:
            raise ValueError(
                f"render {render} was sent with {newest['wheel']}, so there may be no longreel on "
                "the cluster that could go on with it; give that file with --wheel"
            )
        if not newest["errand"]:
            raise ValueError(
                f"render {render} was sent by an older longreel, which did not say what would be "
                "sent again; go on with it on a machine of the cluster, or submit it anew"
            )
        return self.submit(Errand(**json.loads(newest["errand"])), wheel=wheel)

    def view(self, render: str) -> JobView:
        newest = self._newest(render)
        progress: dict[str, Any] = {}
        message = newest["message"].partition("\n")[0]
        for fact in facts(self._log(newest["job"])):
            if fact["event"] == "progress":
                progress[fact["what"]] = fact
            message = fact.get("message", message)  # which is our own, where Ray has its log's end
        return JobView(
            render=newest["render"],
            job=newest["job"],
            state=_STATES[newest["status"]],
            attempt=newest["attempt"],
            message=message,
            progress=progress,
        )

    def wait(self, render: str) -> Iterator[JobView]:
        """How it stands, again and again, until it is over. A cluster that does not answer is
        waited for as well, and NoAnswerError if it takes too long."""
        answered_s = time.monotonic()
        is_told = False
        while True:
            try:
                seen = self.view(render)
            except NoAnswerError as error:
                if time.monotonic() - answered_s > _LOST_S:
                    raise
                if not is_told:
                    _log.warning(
                        "%s; trying on for %g s", first_line(error.__cause__ or error), _LOST_S
                    )
                is_told = True
            else:
                answered_s, is_told = time.monotonic(), False
                yield seen
                if seen.over:
                    return
            time.sleep(_POLL_S)

    def log(self, render: str) -> str:
        return self._log(self._newest(render)["job"])

    def cancel(self, render: str) -> str:
        """It gets some seconds to write what is final, and can be gone on with. How it has ended,
        if that was before."""
        newest = self._newest(render)
        if (state := _STATES[newest["status"]]) in _OVER:
            return state
        with self._plainly():
            self._client.stop_job(newest["job"])
        return ""

    def home(self, render: str) -> Path | None:
        """Where its folder is, if that was said when it was sent."""
        home = self._newest(render)["home"]
        return Path(home) if home else None

    def _log(self, job: str) -> str:
        with self._plainly():
            text: str = self._client.get_job_logs(job)
        return text

    def _newest(self, render: str) -> dict[str, Any]:
        found = self._of(render)
        if not found:
            raise ValueError(
                f"render={render} has no job on {self._address}; `longreel submit` prints the ids "
                "of those it sends"
            )
        return max(found, key=lambda job: job["attempt"])

    def _of(self, render: str) -> list[dict[str, Any]]:
        with self._plainly():
            jobs = self._client.list_jobs()
        return [
            {
                "render": render,
                "job": job.submission_id,
                "status": str(getattr(job.status, "value", job.status)),
                "attempt": int(job.metadata["longreel_attempt"]),
                "home": job.metadata["longreel_home"],
                "errand": job.metadata.get("longreel_errand", ""),
                "wheel": job.metadata.get("longreel_wheel", ""),
                "message": job.message or "",
            }
            for job in jobs
            if (job.metadata or {}).get("longreel_render") == render
        ]

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise NoAnswerError(
                f"address={self._address} does not take jobs ({first_line(error)}); give the "
                "dashboard that `ray start --head` prints, and where the cluster asks for a token, "
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            ) from error


def _client(address: str) -> Any:
    from ray.dashboard.modules.job.sdk import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **more: Any) -> Any:
            return super()._do_request(*args, timeout=_ANSWER_S, **more)

    return Client(address)


def unpack_wheel(wheel: Path, folder: Path) -> Path:
    """Its package, as a folder that Ray sends under the digest of its content.

    Of a wheel as such Ray sends nothing where one of that name has been before, and installs it on
    every node with all that it depends on: another torch in front of the cluster's own.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("longreel/")]
            archive.extractall(folder, names)
    except (OSError, zipfile.BadZipFile):
        names = []
    if "longreel/__init__.py" not in names:
        raise ValueError(
            f"wheel={wheel} is no wheel of longreel, so there is no code to send; build one with "
            "`python -m build --wheel`, and give the file that it makes in dist"
        )
    return folder / "longreel"


def facts(log: str) -> Iterator[dict[str, Any]]:
    """What the driver told a program in its log."""
    for line in log.splitlines():
        if line.startswith(MARK):
            yield json.loads(line[len(MARK) :])
