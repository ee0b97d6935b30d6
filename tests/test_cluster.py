"""Where workers come from: tables, certificates, versions, deadlines, and as many workers as are needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from distributed import Client, WorkerPlugin
from jsonschema import Draft202012Validator, ValidationError
from killing import COMMAND, free_port, wait_until
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

import flows
from flows import deadline
from flows.attempt import Work
from flows.blocks import run_stage
from flows.cluster import open_client, open_workers
from flows.cluster.certificates import options_of, security_of, write_certificates
from flows.cluster.kubernetes import objects
from flows.cluster.versions import code_version
from flows.config.cluster import Address, Kubernetes, Local, OfClass, read_cluster, seconds_of
from unet_core.errors import InputError, RunError
from unet_core.ledger import Done, Ledger, hold
from unet_core.volumes import Store

ROOT = Path(flows.__file__).parents[1]
SLURM = 'kind = "slurm"\ncores = 8\nmemory = "64GB"\nwalltime = "04:00:00"\n'


# Tables


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('kind = "slrum"', "did you mean slurm"),
        ('kind = "slurm"', "cores: Field required"),
        (SLURM.replace("04:00:00", "4h"), "such as 08:00:00"),
        (SLURM + "minimum = 2", "minimum (2) is more than workers (1)"),
        (SLURM + "partition = 1", "unknown key"),
        (SLURM + '[cpu]\nkind = "local"\nworkerz = 3', "[cluster.cpu] in"),
        (SLURM + "[cpu]\nworkers = 3\n[cpu.cpu]\nworkers = 1", "of its own"),
        ('kind = "address"', "address: Field required"),
        ('kind = "address"\naddress = "host:8786"', "tls"),
        ('kind = "kubernetes"\nimage = "x"\ncores = 1\nmemory = "1Gi"\nname = "A_b"', "name = 'A_b'"),
        ("minimum = 0", "unknown key"),
        ("cluster = 3", "not a table"),
    ],
)
def test_a_table_that_is_not_valid_is_refused_with_what_to_change(tmp_path, text, told):
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        read_cluster(str(file), workers=None)
    assert told in str(error.value)
    assert str(file) in str(error.value)


def test_a_table_stands_in_a_file_or_beside_other_parameters(tmp_path):
    (tmp_path / "bare.toml").write_text(SLURM + '[cpu]\nkind = "local"\nworkers = 4\n')
    cpu = '[cluster.cpu]\nkind = "local"\nworkers = 4\n'
    (tmp_path / "named.toml").write_text("[cluster]\n" + SLURM + cpu)
    bare, named = (read_cluster(str(tmp_path / f"{name}.toml"), workers=None) for name in ("bare", "named"))
    table = {"kind": "slurm", "cores": 8, "memory": "64GB", "walltime": "04:00:00"}
    inline = read_cluster({**table, "cpu": {"kind": "local", "workers": 4}}, workers=None)
    assert bare == named == inline
    assert bare.cpu == Local(workers=4)
    assert read_cluster(str(tmp_path / "bare.toml"), workers=7).workers == 7
    assert read_cluster(None, workers=None) == Local()


def test_walltimes_are_read_as_slurm_reads_them():
    assert [seconds_of(text) for text in ("00:01:00", "4:00:00", "2-01:00:05")] == [60, 14400, 176405]


# Certificates


def test_certificates_are_for_their_user_alone_and_never_written_over(tmp_path):
    folder = tmp_path / "made" / "here"
    write_certificates(folder)
    assert {oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == {"0o600"}
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    with pytest.raises(InputError, match="already"):
        write_certificates(folder)
    (folder / "key.pem").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        security_of(folder)
    (folder / "key.pem").unlink()
    with pytest.raises(InputError, match=r"key\.pem"):
        security_of(folder)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"address": "tcp://192.0.2.1:8786"}, "insecure = true"),
        ({"address": "tls://127.0.0.1:8786"}, "needs certificates"),
        ({"address": "tls://127.0.0.1:8786", "tls": "nowhere"}, r"nowhere.*ca\.pem"),
    ],
)
def test_a_scheduler_elsewhere_is_talked_to_with_tls_alone(values, told):
    with pytest.raises(InputError, match=f"(?s){told}"), open_client(Address(kind="address", **values)):
        pass


@contextmanager
def processes(*commands: list[str], folder: Path = ROOT) -> Iterator[None]:
    """Run commands with the packages of a folder in front of others."""
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    started = [subprocess.Popen(command, env=environment, **how) for command in commands]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def scheduler_at(port: int, *options: str) -> list[str]:
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    return [*command, "--port", str(port), "--dashboard-address", "127.0.0.1:0", *options]


def test_a_scheduler_and_a_worker_started_by_hand_with_certificates(tmp_path):
    folder, port = tmp_path / "tls", free_port()
    write_certificates(folder)
    address = f"tls://127.0.0.1:{port}"
    scheduler = scheduler_at(port, "--protocol", "tls", *options_of(folder))
    worker = [*COMMAND, "worker", address, "--tls", str(folder), "--threads", "1", "--walltime", "01:00:00"]
    with processes(scheduler, worker):
        with open_client(Address(kind="address", address=address, tls=str(folder), patience=2.0)) as client:
            assert client.submit(os.getenv, "MALLOC_ARENA_MAX").result() == "1"
            left = float(client.submit(os.getenv, deadline.VARIABLE).result()) - time.time()
            assert 3000 < left < 3600
            (there,) = client.scheduler_info()["workers"].values()
            assert there["nthreads"] == 1
        write_certificates(tmp_path / "others")
        with pytest.raises(RunError, match="no Dask scheduler answers"):
            _open_strangely(address, tmp_path / "others")


def _open_strangely(address: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.cluster.address._PATIENCE", "3s")
        with open_client(Address(kind="address", address=address, tls=str(folder))):
            pass


# Versions


def test_workers_of_another_version_are_refused_with_both_versions(tmp_path):
    for package in ("flows", "unet_core"):
        shutil.copytree(ROOT / package, tmp_path / "other" / package)
    with (tmp_path / "other" / "unet_core" / "loss.py").open("a") as file:
        file.write("# another version\n")
    (tmp_path / "without" / "flows").mkdir(parents=True)
    (tmp_path / "without" / "flows" / "__init__.py").write_text("raise ImportError('nothing here')")
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard", "--nthreads=1"]
    with processes(scheduler_at(port)):
        for folder, told in (("other", r"unet-flows 0\.1\.0 \("), ("without", "no unet-flows")):
            with (
                processes(worker, folder=tmp_path / folder),
                pytest.raises(InputError, match=told) as error,
                open_client(Address(kind="address", address=address, patience=2.0)),
            ):
                pass
            assert code_version() in str(error.value)
            assert error.value.exit_code == 2


# Deadlines


class EndsAt(WorkerPlugin):
    """A walltime for workers that are there, and for those that come; however long starting takes."""

    def __init__(self, end: float) -> None:
        self._end = end

    def setup(self, worker: Any) -> None:
        os.environ[deadline.VARIABLE] = str(self._end)


def slow_block(seconds: float, index: int) -> Done:
    time.sleep(seconds)
    return Done(1)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., object]]:
    """Do six blocks of so many seconds."""
    store = Store(tmp_path / "run")
    with hold(store, every=60) as lease:

        def do(client: Client, seconds: float) -> object:
            ledger = Ledger(store, "slow", 6, lease.epoch)
            return run_stage(
                Work(function=slow_block, arguments=(seconds,)), ledger, lease=lease, client=client
            )

        yield do


def test_a_block_that_no_walltime_leaves_room_for_stops_the_run_and_says_so(stage):
    with open_client(in_this_class()) as client:
        client.register_plugin(EndsAt(time.time() + deadline.MARGIN + 6))
        result = stage(client, 4.0)
    assert "longer walltime" in result.stopped
    assert 1 <= result.done < 6
    assert result.failed == []


# As many workers as are needed


CLASS = {"n_workers": 0, "host": "127.0.0.1", "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}


def in_this_class(**values: object) -> OfClass:
    fixed = {"kind": "class", "cluster_class": "distributed.LocalCluster", "arguments": CLASS}
    return OfClass.model_validate({**fixed, "insecure": True, **values})


def test_a_cluster_adapts_to_the_blocks_that_are_left():
    with open_workers(in_this_class(workers=4, minimum=1)) as workers:

        def count() -> int:
            return len(workers.client.scheduler_info(n_workers=-1)["workers"])

        assert count() == 1
        workers.need(100)
        wait_until(lambda: count() == 4, "all workers that were asked for", 30)
        workers.need(2)
        wait_until(lambda: count() == 2, "those that are needed", 30)
        (lost, *_) = workers.client.scheduler_info()["workers"]
        workers.client.retire_workers([lost])
        wait_until(
            lambda: count() == 2 and lost not in workers.client.scheduler_info()["workers"], "a new one", 60
        )


def test_stages_after_the_network_have_workers_of_their_own():
    config = in_this_class(workers=1).model_copy(update={"cpu": Local(workers=2, environment={"FOR": "cpu"})})
    with open_workers(config) as workers:
        first = workers.client
        assert first.submit(os.getenv, "FOR").result() is None
        workers.for_cpu_stages()
        assert first.status == "closed"
        assert Client.current() is workers.client
        assert set(workers.client.run(os.getenv, "FOR").values()) == {"cpu"}
    with open_workers(config, cpu_stages=True) as workers:
        assert set(workers.client.run(os.getenv, "FOR").values()) == {"cpu"}


def test_a_class_that_would_listen_without_tls_is_refused():
    config = in_this_class(insecure=False, arguments={**CLASS, "host": "0.0.0.0"})
    with pytest.raises(InputError, match="without TLS"), open_client(config):
        pass


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"cluster_class": "nowhere.Cluster"}, "pip install nowhere"),
        ({"cluster_class": "distributed.Nothing"}, "cannot be imported"),
        ({"arguments": {**CLASS, "protocol": "nonsense://"}}, "cannot be started"),
        ({"arguments": {**CLASS, "interface": "lo"}}, "ValueError: "),  # beside a host
    ],
)
def test_a_class_that_cannot_be_had_is_refused(values, told):
    with pytest.raises(InputError, match=told), open_client(in_this_class(**values)):
        pass


def test_a_kind_whose_library_is_missing_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    config = read_cluster(
        {"kind": "slurm", "cores": 1, "memory": "1GB", "walltime": "00:10:00"}, workers=None
    )
    with pytest.raises(InputError, match=r'pip install "unet-flows\[slurm\]"'), open_client(config):
        pass


# Kubernetes


@pytest.fixture(scope="module")
def operator() -> Draft202012Validator:
    """What dask-kubernetes' operator takes, by its own definition; pods are Kubernetes' to judge."""
    import dask_kubernetes.operator

    folder = Path(dask_kubernetes.operator.__file__).parent / "customresources"

    def retrieve(uri: str) -> Resource:
        content = yaml.safe_load((folder / "templates.yaml").read_text()) if "dask_kubernetes" in uri else {}
        pod = {"definitions": {f"io.k8s.api.core.v1.{kind}": {} for kind in ("PodSpec", "ServiceSpec")}}
        return Resource.from_contents(content or pod, default_specification=DRAFT202012)

    definition = yaml.safe_load((folder / "daskcluster.yaml").read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return Draft202012Validator(schema, registry=Registry(retrieve=retrieve))


def require_pods(cluster: dict[str, object]) -> None:
    """Kubernetes' own schemas, unknown keys refused."""
    for part in ("worker", "scheduler"):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": part},
            "spec": cluster["spec"][part]["spec"],
        }
        kubernetes_validate.validate(pod, "1.30", strict=True)


def kubernetes(**values: object) -> Kubernetes:
    basic = {"kind": "kubernetes", "image": "lab/unet-flows:0.1.0", "cores": 8, "memory": "64Gi"}
    return Kubernetes.model_validate({**basic, **values})


def test_what_is_created_in_kubernetes(operator, tmp_path):
    write_certificates(tmp_path / "tls")
    config = kubernetes(gpu=True, namespace="lab", claim="volumes", environment={"AWS_REGION": "here"})
    secret, cluster = objects("run-1", config, tmp_path / "tls")
    operator.validate(cluster)
    require_pods(cluster)
    assert (secret["kind"], secret["metadata"]) == ("Secret", {"name": "run-1-tls", "namespace": "lab"})
    assert set(secret["data"]) == {"ca.pem", "cert.pem", "key.pem"}
    assert (cluster["kind"], cluster["metadata"]) == ("DaskCluster", {"name": "run-1", "namespace": "lab"})
    assert cluster["spec"]["idleTimeout"] > 0, "what a killed run leaves is taken away"
    worker = cluster["spec"]["worker"]["spec"]
    scheduler = cluster["spec"]["scheduler"]["spec"]
    (container,) = worker["containers"]
    assert container["args"][:4] == ["python", "-m", "flows.start_worker", "tls://run-1-scheduler.lab:8786"]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "1"}
    assert container["resources"]["requests"]["cpu"] == "8"
    assert "nvidia.com/gpu" not in str(scheduler), "the scheduler needs none"
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["AWS_REGION"] == "here"
    assert environment["OMP_NUM_THREADS"] == "8"
    for pod in (worker, scheduler):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert {"name": "tls", "mountPath": "/etc/unet-flows/tls", "readOnly": True} in pod["containers"][0][
            "volumeMounts"
        ]
        assert any(word.endswith("/key.pem") for word in pod["containers"][0]["args"])
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "volumes"}} in worker["volumes"]


def test_kubernetes_without_tls_says_so_in_its_table(operator):
    (cluster,) = objects("run-1", kubernetes(insecure=True), None)
    operator.validate(cluster)
    require_pods(cluster)
    assert "tls" not in str(cluster)
    cluster["spec"]["worker"]["replicas"] = "three"
    with pytest.raises(ValidationError, match="three"):
        operator.validate(cluster)
    cluster["spec"]["worker"]["spec"]["containers"][0]["imagePull"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePull"):
        require_pods(cluster)


def test_kubernetes_that_cannot_be_reached_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InputError, match="Kubernetes does not take this cluster"), open_client(kubernetes()):
        pass
