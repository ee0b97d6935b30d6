"""Deployments: the files fit the flows, installing them twice changes nothing, and runs are started, refused,
cancelled and resumed as promised, by a real Prefect server and worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from deployed import (
    DEPLOY,
    PLANES,
    QUICK,
    edited,
    emit_arrival,
    eventually,
    gone,
    on_real_data,
    prefect,
    runs_of,
    switch,
    worker,
)
from killing import done, prefect_server, wait_until
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Cancelling
from prefect.utilities.callables import parameter_schema

from flows import cli
from flows.deployments import Request, install
from flows.deployments.definitions import (
    Definitions,
    Schedule,
    read_automations,
    read_definitions,
    read_pool_template,
)
from flows.deployments.parameters import checked
from flows.deployments.pools import ensure_pool
from flows.deployments.schedules import schedules_of
from flows.inspection import status, verify
from flows.segment import segment
from unet_core.errors import InputError, RunError
from unet_core.ledger import read_status
from unet_core.volumes import Store

pytestmark = pytest.mark.timeout(600)
FILE = str(DEPLOY / "prefect.yaml")
CRON = "* * * * * */2"  # seconds, after the fields that all know


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
        ({"pool": "not/a name"}, "--pool"),
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


def test_typed_values_become_what_the_flow_takes() -> None:
    schema = parameter_schema(segment).model_dump(exclude_unset=True)
    typed = {
        "tile": "64,64,64",
        "level": "1",
        "skip_below": "2.5",
        "probabilities": "true",
        "channels": "0",
        "cluster": '{"kind": "local", "workers": 2}',
    }
    assert checked("segment", typed, schema) == {
        "tile": "64,64,64",
        "level": 1,
        "skip_below": 2.5,
        "probabilities": True,
        "channels": "0",
        "cluster": {"kind": "local", "workers": 2},
    }


@pytest.mark.parametrize("values", [{"cron": "at night"}, {"cron": "0 1 * * *", "timezone": "Narnia"}])
def test_a_schedule_that_is_none_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(InputError, match="this schedule is not valid"):
        schedules_of([Schedule(slug="nightly", **values)], [], resume=False)


def test_a_server_that_is_not_there_is_an_error_of_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["unet-flows", "deploy", "--server", "http://127.0.0.1:9", "--file", FILE, "--json"]
    monkeypatch.setattr(sys, "argv", command)
    assert cli.run() == 2
    out, errors = capsys.readouterr()
    assert json.loads(out)["error"]["where"] == "http://127.0.0.1:9/api"
    assert errors.startswith("error: Prefect's server cannot be reached")


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


@pytest.fixture
def fresh(client: SyncPrefectClient) -> None:
    """Nothing that another test deployed; what a deployment owns goes with it."""
    for deployment in client.read_deployments():
        client.delete_deployment(deployment.id)
    for automation in client.read_automations():
        client.delete_automation(automation.id)


def deploy(server: dict[str, str], file: str = FILE, **options: Any) -> dict[str, str]:
    """What was done with each thing, by name."""
    document = install(Request(server=server["PREFECT_API_URL"], file=file, **options))
    return {change["name"]: change["did"] for change in document["changes"]}


def test_prefects_own_command_makes_the_same_deployments(
    server: dict[str, str], client: SyncPrefectClient, fresh: None, tmp_path: Path
) -> None:
    ensure_pool(client, "unet-flows", "process", read_pool_template(DEPLOY / "work-pools", "process"))
    prefect(server, "--no-prompt", "deploy", "--all", "--prefect-file", FILE)
    did = deploy(server)
    assert did.pop("unet-flows zombie runs") == "made"
    assert set(did.values()) == {"unchanged"}, did
    assert set(deploy(server).values()) == {"unchanged"}

    # What people and --set have said stays; what they did twice does not.
    there = client.read_deployment_by_name("segment/segment")
    assert [s.active for s in there.schedules] == [False]
    (zombies,) = read_automations(DEPLOY / "automations").values()
    client.delete_automation(client.read_automations_by_name("unet-flows zombie runs")[0].id)
    for description in ("what an older version made", "and its double"):
        client.create_automation(AutomationCore.model_validate(zombies | {"description": description}))
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
    there = client.read_deployment_by_name("segment/segment")
    assert there.parameters == {"volume": "/data/a.zarr", "model": "/model", "to": "/labels", "workers": 2}
    assert [s.active for s in there.schedules] == [True]
    assert not client.read_automations_by_name("unet-flows volume arrived")[0].enabled
    (zombie,) = client.read_automations_by_name("unet-flows zombie runs")
    assert zombie.description == zombies["description"]

    # A file that says something else wins, but for whether a schedule is active.
    def change(deployments: dict[str, dict[str, Any]]) -> None:
        deployments["segment"]["schedules"][0]["cron"] = "30 4 * * *"
        deployments["segment"]["parameters"] = {"workers": 3}

    did = deploy(server, edited(tmp_path / "deploy", change))
    assert {name for name, what in did.items() if what == "updated"} == {
        "segment/segment",
        "segment/segment nightly",
    }
    there = client.read_deployment_by_name("segment/segment")
    assert there.parameters["workers"] == 3
    assert [(s.schedule.cron, s.active) for s in there.schedules] == [("30 4 * * *", True)]


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


def test_what_the_server_refuses_is_said(server: dict[str, str], client: SyncPrefectClient) -> None:
    """Somebody has made a pool that takes something else."""
    template = read_pool_template(DEPLOY / "work-pools", "process")
    template["variables"]["properties"]["env"] = {"type": "string"}
    ensure_pool(client, "strict", "process", template)
    with pytest.raises(RunError) as refused:
        deploy(server, pool="strict")
    assert "Prefect's server refuses this" in str(refused.value)
    assert "/api/deployments/" in str(refused.value.where)
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in str(refused.value.found)


def test_pools_of_containers(server: dict[str, str], client: SyncPrefectClient) -> None:
    for kind, options in (("docker", {"image": "unet-flows:1"}), ("kubernetes", {})):  # the image is kept
        assert deploy(server, kind=kind, **options)[f"unet-flows-{kind}"] == "made"
        assert client.read_work_pool(f"unet-flows-{kind}").type == kind
        train = client.read_deployment_by_name("train/train")
        assert train.work_pool_name == f"unet-flows-{kind}"
        assert train.job_variables["image"] == "unet-flows:1"
    assert set(deploy(server, kind="kubernetes").values()) == {"unchanged"}


@pytest.mark.unattended
def test_runs_on_real_data(
    server: dict[str, str], client: SyncPrefectClient, fresh: None, tmp_path: Path
) -> None:
    """An event starts a run; cancelled, it leaves no process. After an outage one of the late runs of a cron
    completes what was begun; the others are refused, and so are those that come meanwhile."""
    to = tmp_path / "labels.zarr"
    deploy(server, on_real_data(tmp_path, to, CRON))
    emit_arrival(server, f"{tmp_path}/fib25.zarr", str(to))
    with worker(server, tmp_path) as running:
        wait_until(lambda: done(to) >= 3, "blocks of a run that an event started")
        processes = running.runs()
        assert len(processes) >= 2, "the run and a Dask worker"
        (run,) = runs_of(client, "segment/arrived", StateType.RUNNING)
        client.set_flow_run_state(run.id, Cancelling())
        assert gone(processes)
        before = done(to)
        assert 3 <= before < PLANES
        there = status(str(to))
        assert (there["status"], there["held_by"]) == ("partial", None)
        eventually(lambda: client.read_flow_run(run.id).state_type == StateType.CANCELLED, "its last state")
        running.stop()

    switch(client, "segment/segment", active=True)
    eventually(lambda: len(runs_of(client, "segment/segment", StateType.SCHEDULED)) >= 3, "late runs")
    with worker(server, tmp_path):
        eventually(lambda: runs_of(client, "segment/segment", StateType.RUNNING), "one of them to begin")
        late = runs_of(client, "segment/segment", StateType.CANCELLED)
        assert len(late) >= 2, "no stampede"
        eventually(lambda: runs_of(client, "segment/segment", StateType.COMPLETED), "it to complete")
        switch(client, "segment/segment", active=False)
    assert len(runs_of(client, "segment/segment", StateType.CANCELLED)) > len(late), "no overlap"
    recorded = read_status(Store(to))
    assert recorded is not None
    assert recorded["stages"]["predict"]["skipped"] == before, "what was done is not done again"
    assert verify(str(to)).sound
    assert len(np.unique(zarr.open_array(to / "0", mode="r")[:])) > 1
