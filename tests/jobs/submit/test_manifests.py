"""What docs/cluster.md gives for other schedulers: as far as it can be known without them."""

import os
import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from command import longreel

from longreel.jobs.render import plan_render
from longreel.jobs.submit.errand import read_request

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "cluster.md").read_text()
# the JSON names in KubeRay's ray-operator/apis/ray/v1 of what we use or might
JOB = {
    *("entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
    *("rayClusterSpec", "backoffLimit", "activeDeadlineSeconds", "runtimeEnvYAML"),
}
CLUSTER = {"headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling"}
HEAD = {"rayStartParams", "template", "serviceType"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def block(kind, begins):
    (found,) = re.findall(rf"```{kind}\n({re.escape(begins)}.*?)```", TEXT, re.S)
    return found


def test_the_rayjob_has_the_fields_that_kuberay_knows_and_a_command_that_we_do():
    job = yaml.safe_load(block("yaml", "apiVersion: ray.io"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for fields, known in ((spec, JOB), (cluster, CLUSTER), (head, HEAD), (workers, WORKERS)):
        assert fields.keys() <= known
    assert spec["submissionMode"] == "HTTPMode", "else another pod's shell reads $RAY_ADDRESS"
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    name, *arguments = shlex.split(spec["entrypoint"].replace("$RAY_ADDRESS", "10.0.0.1:6379"))
    asked = [argument.replace("/renders/", "") for argument in arguments]
    assert name == "longreel"
    done = longreel(*asked, "--dry-run", "model.device=cpu")
    assert done.code == 0, done.err
    gpus = workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert f"parallel.num_stages={workers['replicas'] * gpus}" in arguments


def test_the_request_file_is_one_that_can_be_met(tmp_path):
    (tmp_path / "request.yaml").write_text(block("yaml", "prompt: "), encoding="utf-8")
    assert plan_render(**read_request(tmp_path / "request.yaml")).schedule.num_blocks > 1


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_the_slurm_script_starts_a_head_then_workers_then_the_render(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        script = block("bash", "#!/bin/bash").replace("6379", str(port))
        stand_ins = {
            "scontrol": "echo 127.0.0.1; echo node-2",
            "srun": f'echo "$@" >> {tmp_path}/said',
            "openssl": "echo 00ff",
        }
        for name, does in stand_ins.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
            (tmp_path / name).chmod(0o755)
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_NODELIST": "node-[1-2]",
            "SLURM_NNODES": "2",
            "SCRATCH": str(tmp_path),
        }
        subprocess.run(
            ["/bin/bash", "-c", f"{script}\nwait"], env=environment, check=True, timeout=60
        )
    said = (tmp_path / "said").read_text().splitlines()
    assert len(said) == 3
    assert any(f"--port={port} --block" in line and "-w 127.0.0.1" in line for line in said)
    assert any(f"--address=127.0.0.1:{port}" in line and "--ntasks=1" in line for line in said)
    (render,) = [line for line in said if " longreel render " in line]
    arguments = render.partition("longreel render a fox ")[2].split()
    done = longreel("render", "a fox", *arguments, "--dry-run", "model.device=cpu")
    assert done.code == 0, done.err
