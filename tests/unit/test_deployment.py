"""The files of deploy/: what they name exists, they hold no secret, and they listen on this machine alone."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from retro.config import load_config

ROOT = Path(__file__).resolve().parents[2]
SECRET = re.compile(r"PASSWORD|KEY|TOKEN")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / name).read_text(encoding="utf-8"))


def pods(job: Any) -> Iterator[Any]:
    cluster = job["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]["spec"]


def test_compose_takes_secrets_from_the_environment_and_publishes_to_this_machine_alone() -> None:
    tree = read("compose.yaml")
    assert set(tree["services"]) == {"postgres", "vllm", "head", "worker"}
    for service in tree["services"].values():
        for name, value in service["environment"].items():
            if SECRET.search(name):
                assert re.fullmatch(r"\$\{\w+:(\?.+|-)\}", value), f"{name} is written in the file"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert set(service.get("depends_on", ())) <= set(tree["services"])
        sources = [volume.split(":")[0] for volume in service["volumes"]]
        assert all(source.startswith("../") or source in tree["volumes"] for source in sources)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(tree["services"]["head"]["build"]["args"]["EXTRAS"].split(",")) <= set(extras)


def test_the_job_runs_a_config_that_exists_on_a_cluster_that_is_large_enough() -> None:
    job = read("kuberay-job.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    folder, command = job["spec"]["entrypoint"].split(" && ")
    words = shlex.split(command)
    assert (folder, words[:2]) == ("cd /home/retro/work", ["retro", "run"])
    config = load_config(ROOT / words[2], words[3:])
    assert config.buffer_url.endswith("?schema=cluster")
    cores = sum(
        group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert config.runner.chosen == "ray" and config.runner.processes <= cores
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}" in pins


def test_the_pods_take_secrets_from_a_secret_and_mount_what_they_have() -> None:
    for pod in pods(read("kuberay-job.yaml")):
        (container,) = pod["containers"]
        for variable in container["env"]:
            assert not SECRET.search(variable["name"]) or variable["valueFrom"]["secretKeyRef"]["name"] == "retro"
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["image"] == read("compose.yaml")["services"]["head"]["image"]
