"""The runner ``ray``: the same episodes as in one process, whatever happens to its workers."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from vault_world import World, made, played, written

from retro.actors.budget import BudgetExceededError
from retro.cli.plan import plan_run
from retro.config import ConfigError, RunConfig
from retro.rollout.processes import WorkersFailedError
from retro.rollout.ray_runner import RayCluster, RayRunner, RayRunnerOptions, _room
from retro.rollout.ray_worker import lacking, report_pauses
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.training.collect import STAGE
from tests.unit.actors.api_server import SECRET, Server
from tests.unit.actors.conftest import server  # noqa: F401 - a fixture

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'retro[ray]'"
)
TWO: dict[str, Any] = {"kind": "ray", "workers": 2, "num_cpus": 0.5}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster on this machine, which the runners of all tests find open."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OPENAI_API_KEY", SECRET)
        with PlayerParts("cpu") as parts:
            yield parts.once("cluster", lambda: RayCluster(RayRunnerOptions(**TWO), parts))
    import ray

    assert not ray.is_initialized()


def test_several_launched_processes_cannot_each_have_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    spec, parts = PlayerSpec.of(RunConfig()), PlayerParts("cpu")
    with pytest.raises(ConfigError, match="2 processes were launched, and each would have its own workers and limits"):
        RayRunner.from_options(RayRunnerOptions(), spec, parts)


@needs_ray
def test_two_workers_play_the_tree_that_one_process_plays(world: World, cluster: RayCluster) -> None:
    one = world.collect({"kind": "local"})
    assert written(world.collect(TWO)) == written(one)
    assert 2 <= world.processes <= 3, "this process, and each worker that was ready before all was played"


@needs_ray
def test_what_a_killed_worker_played_is_played_by_another(
    world: World, cluster: RayCluster, caplog: pytest.LogCaptureFixture
) -> None:
    one = world.collect({"kind": "local"})
    trees = world.collect(TWO, deaths=1)
    assert written(trees) == written(one)
    ids = [episode.id for tree in trees for episode in tree]
    assert len(set(ids)) == len(ids)
    assert "a worker process was lost" in caplog.text
    assert 3 <= world.processes <= 4, "this process, and at least one worker beside the one that died"


@needs_ray
def test_a_budget_is_that_of_all_workers_and_the_key_is_in_no_file(
    world: World,
    cluster: RayCluster,
    server: Server,  # noqa: F811
    tmp_path: Path,
) -> None:
    ledger = tmp_path / "actor_usage.jsonl"
    actor = {"kind": "openai", "base_url": server.url, "concurrency": 6, "budget": {"tokens": 300}}
    with pytest.raises(BudgetExceededError, match=r"actor\.budget\.tokens: \d+ of 300 tokens are spent"):
        played(world.config_of(actor, TWO), ledger)
    spent = sum(sum(json.loads(line).values()) for line in ledger.read_text().splitlines())
    assert spent >= 300
    assert spent == 15 * len(server.requests)
    assert set(server.keys) == {f"Bearer {SECRET}"}
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())  # its logs, and the metadata of jobs
    files = [path for path in session.rglob("*") if path.is_file()]
    assert files and not [path for path in files if SECRET.encode() in path.read_bytes()]


@needs_ray
def test_a_cluster_that_is_too_small_is_refused(world: World, cluster: RayCluster) -> None:
    config = world.config({"kind": "ray", "workers": 1000})
    with PlayerParts("cpu") as parts, pytest.raises(ConfigError, match=r"runner\.workers=1000 .* has room for \d+"):
        made(config, parts)


@needs_ray
@pytest.mark.parametrize("who", ["nobody", "somebody silent", "another server"])
def test_an_address_that_is_not_of_a_cluster_is_refused(
    who: str,
    world: World,
    server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("retro.rollout.ray_runner._ANSWERS_IN_SECONDS", 0.2 if who == "somebody silent" else 60.0)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")  # this test's servers listen there only
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if who == "somebody silent":
            bound.listen()
        port = server.server_address[1] if who == "another server" else bound.getsockname()[1]
        runner = {"kind": "ray", "address": f"127.0.0.1:{port}"}
        with PlayerParts("cpu") as parts, pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: no Ray cluster can"):
            made(world.config(runner), parts)


def test_without_ray_the_extra_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = RunConfig.model_validate({"runner": "ray"})
    with pytest.raises(ConfigError, match=r"runner 'ray' needs ray: pip install 'retro\[ray\]'"):
        plan_run(config, [STAGE])


def test_another_runner_leaves_a_collection_up_to_date() -> None:
    local, ray = (RunConfig.model_validate({"runner": runner}) for runner in ("local", TWO))
    assert STAGE.deciding(local) == STAGE.deciding(ray)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:6379", "head", "head:", ":6379", "head:0"])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="is not HOST:PORT"):
        RayRunnerOptions(address=address)


def test_addresses_are_those_that_ray_prints() -> None:
    for address in ("head:6379", "10.0.0.1:6379", "[::1]:6379", "auto", None):
        assert RayRunnerOptions(address=address).address == address


def test_parts_of_more_than_one_core_are_refused() -> None:
    assert RayRunnerOptions(num_cpus=0.5, num_gpus=2).num_gpus == 2
    with pytest.raises(ValidationError, match=r"num_cpus: Ray reserves whole numbers above 1, not 1\.5"):
        RayRunnerOptions(num_cpus=1.5)


def test_a_worker_needs_all_that_it_reserves_on_one_machine() -> None:
    options = RayRunnerOptions(num_cpus=4, num_gpus=0.5)
    assert [_room(node, options) for node in ({"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 4.0})] == [
        0,
        2,
        0,
    ]
    assert _room({"CPU": 9.0}, RayRunnerOptions(num_cpus=2)) == 4


def test_a_worker_that_waits_reports_what_it_needs_less_and_less_often() -> None:
    assert list(islice(report_pauses(600.0), 8)) == [30, 30, 60, 120, 240, 120, 600, 600]
    assert list(islice(report_pauses(2.0), 2)) == [2, 2]
    said = (
        "num_cpus=4 and num_gpus=0.5 on one machine of the Ray cluster, or to start there (free in all of it: 6 CPUs "
    )
    assert lacking({"num_cpus": 4.0, "num_gpus": 0.5}, {"CPU": 6.0}) == f"{said}and 0 GPUs)"


@needs_ray
def test_workers_that_get_no_resources_leave_the_play_to_the_others(
    world: World, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    one = world.collect({"kind": "local"})
    monkeypatch.setattr("retro.rollout.ray_worker._REPORTS_AFTER_SECONDS", 0.1)
    cores = ray.cluster_resources()["CPU"]
    if cores < 2:
        pytest.skip("needs two cores")
    while ray.available_resources().get("CPU", 0) < cores:  # the workers of the tests before end
        time.sleep(0.05)

    class Other:
        """Somebody else on the cluster, who leaves one core."""

    other = ray.remote(num_cpus=cores - 1)(Other).remote()
    ray.get(other.__ray_ready__.remote())
    try:
        assert written(world.collect({"kind": "ray", "workers": 2, "num_cpus": 1})) == written(one)
        assert world.processes == 2, "this process, and one worker"
        assert "of 2 workers wait for num_cpus=1 on one machine" in caplog.text
        runner = {"kind": "ray", "workers": 1, "num_cpus": cores, "start_seconds": 1.0}
        with pytest.raises(WorkersFailedError, match=r"no worker could start within 1 s .* on one machine of the Ray"):
            world.collect(runner)
    finally:
        ray.kill(other)


def test_limits_stay_whole() -> None:
    actor = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "requests_per_minute": 1, "budget": {"tokens": 9}}
    config = RunConfig.model_validate({"actor": actor, "runner": TWO})
    share = pickle.loads(pickle.dumps(PlayerSpec.of(config))).actor.share(2, shared_limits=True)
    assert (share.concurrency, share.requests_per_minute, share.budget.tokens) == (128, 1, 9)


DRIVER = """
import sys
from pathlib import Path
from retro.config import load_config
from vault_world import played, written

trees = played(load_config(sys.argv[1]))
Path(sys.argv[2]).write_text(written(trees))
"""


def drive(world: World, runner: dict[str, Any], **options: Any) -> subprocess.Popen[bytes]:
    """Play in a process of its own, which writes the trees into the file ``trees``."""
    path = world.folder / "config.yaml"
    path.write_text(world.config(runner, **options).dump(), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if str(runner.get("address")).startswith("127."):  # this process has imported Ray to start a cluster there
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    command = [sys.executable, "-c", DRIVER, path, world.folder / "trees"]
    return subprocess.Popen(command, env=environment, process_group=0)


@needs_ray
@pytest.mark.slow
def test_two_machines_play_the_tree_that_one_process_plays(world: World) -> None:
    from ray.cluster_utils import Cluster

    one = world.collect({"kind": "local"})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        runner = {"kind": "ray", "workers": 2, "address": cluster.address}
        assert drive(world, runner, deaths=1).wait() == 0
        assert (world.folder / "trees").read_text() == written(one)
        runner["workers"] = 3
        assert drive(world, runner).wait() != 0, "there is room for two"
    finally:
        cluster.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_run(world: World, ending: signal.Signals) -> None:
    os.mkfifo(world.folder / "open")  # every process of the world keeps its end open
    reading = os.open(world.folder / "open", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    driver = drive(world, TWO, fails="hangs")
    while world.processes < 2:
        assert driver.poll() is None
        time.sleep(0.1)
    if ending is signal.SIGINT:
        os.killpg(driver.pid, ending)  # as a terminal does: to the processes of the cluster, too
    else:
        driver.send_signal(ending)
    driver.wait()
    assert os.read(reading, 1) == b""
    os.close(reading)
    if ending is signal.SIGINT:
        assert (world.folder / "stopped").exists()
