"""Deployments: the files fit the flows, installing them twice changes nothing, and runs are started, refused,
cancelled and resumed as promised, by a real Prefect server and worker."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from deployed import DEPLOY, PLANES, QUICK, edited, gone, make_inputs, prefect, worker
from killing import COMMAND, Running, done, prefect_server, wait_until
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Cancelling
from prefect.utilities.callables import parameter_schema

from flows.deployments import Request, install
from flows.deployments.definitions import Definitions, read_definitions
from flows.inspection import status, verify
from unet_core.errors import InputError

FILE = str(DEPLOY / "prefect.yaml")
CRON = "* * * * * */2"  # the sixth field is seconds


@pytest.fixture(scope="module")
def definitions() -> Definitions:
    return read_definitions(FILE)


def test_the_files_fit_the_flows(definitions: Definitions) -> None:
    assert {d.name for d in definitions.deployments} == {"segment", "train", "watch", "arrived"}
    for entry in definitions.deployments:
        schema = parameter_schema(load_flow_from_entrypoint(entry.entrypoint, use_placeholder_flow=False))
        given = [entry.parameters, *(s.parameters for s in entry.schedules)]
        given += [trigger["parameters"] for trigger in entry.triggers]
        assert {name for values in given for name in values} <= set(schema.properties)
        for name, field in schema.properties.items():
            assert len(field.get("description", "")) > 10, f"{entry.name}: {name} is not explained"
            assert "--" not in field["description"], "a form has no options"
        assert entry.concurrency_limit.limit == 1
        if entry.name in ("segment", "train", "watch"):
            assert entry.concurrency_limit.collision_strategy == "CANCEL_NEW"
            assert entry.schedules
        assert "unet-flows" in entry.tags, "the automation for zombies goes by it"


def test_work_pools_are_templates_of_what_they_use() -> None:
    for path in (DEPLOY / "work-pools").glob("*.json"):
        template = json.loads(path.read_text())
        properties = template["variables"]["properties"]
        text = json.dumps(template["job_configuration"])
        used = {part.split("}}")[0].strip() for part in text.split("{{")[1:]}
        assert used == set(properties), path
        assert all(field["description"] for field in properties.values())
        assert (template["variables"].get("required") == ["image"]) == (path.stem != "process")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"server": "127.0.0.1:4200"}, "--server is not a URL"),
        ({"server": "http://me:secret@127.0.0.1:4200"}, "a password in --server would be kept in logs"),
        ({"file": "nothing.yaml"}, "this file cannot be read"),
        ({"image": "unet-flows:1"}, "kind process has no image"),
        ({"values": ("watch.to",)}, "--set is not understood"),
        ({"values": ("wacth.to=/labels",)}, "did you mean watch?"),
        ({"resume": ("nobody",)}, "--resume names no deployment"),
    ],
)
def test_bad_input_is_refused_before_the_server_is_asked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        install(Request(**{"server": "http://127.0.0.1:9", "file": FILE, **options}))
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deployments: [", "this is not YAML"),
        ("- 1", "no mapping"),
        ("name: x", "deployments"),
        ("{}", ""),
    ],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "prefect.yaml"
    if text == "{}":
        text = Path(FILE).read_text().replace("parameters: {}", "parameters: {image: '{{ $IMAGE }}'}", 1)
        said = "filled in by `prefect deploy` alone"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_definitions(str(path))
    assert said in str(refused.value)


def test_a_server_that_is_not_there_is_an_error_of_a_sentence() -> None:
    command = [*COMMAND, "deploy", "--server", "http://127.0.0.1:9", "--file", FILE, "--json"]
    code, document, errors = Running.start(command).end(60)
    assert code == 2
    assert document["error"]["where"] == "http://127.0.0.1:9/api"
    assert "Prefect's server cannot be reached" in errors
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
            yield environment


@pytest.fixture(scope="module")
def client(server: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(server["PREFECT_API_URL"]) as client:
        yield client


def deploy(server: dict[str, str], file: str = FILE, **options: Any) -> dict[str, str]:
    """What was done with each thing, by name."""
    document = install(Request(server=server["PREFECT_API_URL"], file=file, **options))
    return {change["name"]: change["did"] for change in document["changes"]}


def test_prefects_own_command_makes_the_same_deployments(
    server: dict[str, str], client: SyncPrefectClient, definitions: Definitions, tmp_path: Path
) -> None:
    pool = str(DEPLOY / "work-pools" / "process.json")
    prefect(server, "work-pool", "create", "unet-flows", "--type", "process", "--base-job-template", pool)
    prefect(server, "--no-prompt", "deploy", "--all", "--prefect-file", FILE)
    did = deploy(server)
    assert did.pop("unet-flows zombie runs") == "made"
    assert set(did.values()) == {"unchanged"}, did
    assert set(deploy(server).values()) == {"unchanged"}

    # What people and --set have said stays; what they did twice does not.
    segment = client.read_deployment_by_name("segment/segment")
    assert [s.active for s in segment.schedules] == [False]
    prefect(server, "automation", "create", "--from-file", str(DEPLOY / "automations" / "zombie-runs.yaml"))
    client.pause_automation(client.read_automations_by_name("unet-flows volume arrived")[0].id)
    values = (
        "segment.volume=/data/a.zarr",
        "segment.model=/model",
        "segment.to=/labels",
        "segment.workers=2",
    )
    did = deploy(server, values=values, resume=("segment",))
    changed = {name for name, what in did.items() if what != "unchanged"}
    assert changed == {"segment/segment", "segment/segment nightly", "unet-flows zombie runs"}
    assert set(deploy(server).values()) == {"unchanged"}
    segment = client.read_deployment_by_name("segment/segment")
    assert segment.parameters == {"volume": "/data/a.zarr", "model": "/model", "to": "/labels", "workers": 2}
    assert [s.active for s in segment.schedules] == [True]
    assert not client.read_automations_by_name("unet-flows volume arrived")[0].enabled
    assert len(client.read_automations_by_name("unet-flows zombie runs")) == 1

    # A file that says something else wins, but for whether a schedule is active.
    def change(deployments: dict[str, dict[str, Any]]) -> None:
        deployments["segment"]["schedules"][0]["cron"] = "30 4 * * *"
        deployments["segment"]["parameters"] = {"workers": 3}

    did = deploy(server, edited(tmp_path / "deploy", change))
    assert {name for name, what in did.items() if what == "updated"} == {
        "segment/segment",
        "segment/segment nightly",
    }
    segment = client.read_deployment_by_name("segment/segment")
    assert segment.parameters["workers"] == 3
    assert [(s.schedule.cron, s.active) for s in segment.schedules] == [("30 4 * * *", True)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"values": ("segment.voulme=/a.zarr",)}, "did you mean volume?"),
        ({"values": ("segment.level=fine",)}, "this parameter is not valid"),
        ({"values": ("segment.to=labels.zarr",)}, "a relative path leads elsewhere"),
        ({"resume": ("train",)}, "--resume train: its runs could not begin"),
        ({"kind": "docker"}, "a work pool of kind docker needs an image"),
        ({"kind": "docker", "image": "unet-flows:1", "pool": "unet-flows"}, "of another kind"),
    ],
)
def test_bad_input_changes_nothing_on_the_server(
    server: dict[str, str], client: SyncPrefectClient, options: dict[str, Any], said: str
) -> None:
    deploy(server)
    with pytest.raises(InputError) as refused:
        deploy(server, **options)
    assert said in str(refused.value)
    assert set(deploy(server).values()) == {"unchanged"}


def test_pools_of_containers(server: dict[str, str], client: SyncPrefectClient) -> None:
    for kind in ("docker", "kubernetes"):
        deploy(server, kind=kind, image="unet-flows:1")
        assert client.read_work_pool(f"unet-flows-{kind}").type == kind
        assert client.read_deployment_by_name("train/train").work_pool_name == f"unet-flows-{kind}"
        # The image is kept, too.
        assert set(deploy(server, kind=kind).values()) == {"unchanged"}
    assert client.read_deployment_by_name("train/train").job_variables["image"] == "unet-flows:1"


def test_runs_on_real_data(server: dict[str, str], client: SyncPrefectClient, tmp_path: Path) -> None:
    """A cron starts a run and refuses others; cancelled, and its worker stopped, no process is left; after an
    outage one late run completes what was begun, and the others are refused."""
    given = make_inputs(tmp_path)
    to = tmp_path / "labels.zarr"

    def change(deployments: dict[str, dict[str, Any]]) -> None:
        deployments["segment"]["parameters"] = {**given, "to": str(to)}
        deployments["segment"]["schedules"] = [{"slug": "nightly", "cron": CRON, "active": True}]
        deployments["arrived"]["parameters"] = {"model": given["model"], "tile": given["tile"]}

    with worker(server, tmp_path) as running:
        deploy(server, edited(tmp_path / "deploy", change), resume=("segment",))
        wait_until(lambda: done(to) >= 3, "blocks of a scheduled run")
        wait_until(lambda: cancelled(client, "segment/segment") >= 1, "a run that is refused")
        switch(client, "segment/segment", active=False)
        (first,) = under_way(client, "segment/segment")
        processes = running.runs()
        assert len(processes) >= 2, "the run and a Dask worker"
        client.set_flow_run_state(first.id, Cancelling())
        assert gone(processes)
        assert running.process.poll() is None
        wait_until(lambda: state(client, first) == StateType.CANCELLED, "the run to be cancelled")
        before = done(to)
        assert 3 <= before < PLANES
        there = status(str(to))
        assert (there["status"], there["held_by"]) == ("partial", None)

        payload = json.dumps({"volume": given["volume"], "to": str(to)})
        event = (
            "unet-flows.volume.arrived",
            "--resource-id",
            "unet-flows.volume.fib25",
            "--payload",
            payload,
        )
        prefect(server, "event", "emit", *event)
        wait_until(lambda: done(to) >= before + 3, "blocks of a run that an event started")
        processes = running.runs()
        running.stop()
        assert gone(processes)
        before = done(to)
        assert before < PLANES
        (second,) = under_way(client, "segment/arrived")
        assert second.parameters["to"] == str(to)

    refused = cancelled(client, "segment/segment")
    switch(client, "segment/segment", active=True)
    wait_until(lambda: late(client, "segment/segment") >= 3, "runs that nobody does")
    switch(client, "segment/segment", active=False)
    waiting = late(client, "segment/segment")
    with worker(server, tmp_path):
        wait_until(
            lambda: count(client, "segment/segment", StateType.COMPLETED) == 1, "a late run to complete"
        )
        wait_until(lambda: late(client, "segment/segment") == 0, "the others to be refused")
    assert cancelled(client, "segment/segment") - refused == waiting - 1, "one run, no stampede"
    assert status(str(to))["stages"]["predict"]["skipped"] >= before
    assert verify(str(to)).sound
    assert len(np.unique(zarr.open_array(to / "0", mode="r")[:])) > 1


def runs(client: SyncPrefectClient, deployment: str) -> list[FlowRun]:
    identity = client.read_deployment_by_name(deployment).id
    return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[identity])))


def count(client: SyncPrefectClient, deployment: str, kind: StateType) -> int:
    return Counter(run.state_type for run in runs(client, deployment))[kind]


def cancelled(client: SyncPrefectClient, deployment: str) -> int:
    return count(client, deployment, StateType.CANCELLED)


def under_way(client: SyncPrefectClient, deployment: str) -> list[FlowRun]:
    return [run for run in runs(client, deployment) if run.state_type == StateType.RUNNING]


def late(client: SyncPrefectClient, deployment: str) -> int:
    """Runs whose time has come, that nobody has begun."""
    waiting = [run for run in runs(client, deployment) if run.state_type == StateType.SCHEDULED]
    return sum(run.estimated_start_time_delta.total_seconds() > 0 for run in waiting)


def state(client: SyncPrefectClient, run: FlowRun) -> StateType | None:
    return client.read_flow_run(run.id).state_type


def switch(client: SyncPrefectClient, deployment: str, *, active: bool) -> None:
    """A schedule on or off; Prefect takes back what it had planned for later."""
    there = client.read_deployment_by_name(deployment)
    for schedule in there.schedules:
        client.update_deployment_schedule(there.id, schedule.id, active=active)
