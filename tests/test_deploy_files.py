"""What deploy/ brings for containers and clusters, as far as it can be checked without an engine.

Docker's own Compose reads its files, hadolint the Dockerfile, Kubernetes' schemas judge the manifests,
shellcheck the batch script; and every command that stands anywhere is parsed by the program it is for.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import typer
import yaml
from distributed.cli.dask_scheduler import main as dask_scheduler
from prefect.settings import Settings
from prefect.settings.base import PrefectBaseSettings

from flows.cli import app
from flows.cluster.certificates import write_certificates
from flows.cluster.kubernetes import objects
from flows.config.cluster import Kubernetes, Slurm, read_cluster

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
MANIFESTS = DEPLOY / "kubernetes"
BATCH = DEPLOY / "slurm" / "unet-flows.sbatch"
OURS = "unet-flows:0.1.0"


def tool(name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """One that pip installs beside this Python."""
    command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **environment}, check=False)


def pinned(image: str) -> bool:
    return re.search(r":v?\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?$", image) is not None


# The image


def lint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    return tool("hadolint", dockerfile)


def instructions(name: str) -> list[str]:
    """What stands behind this keyword in the Dockerfile, line for line."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]


def test_the_dockerfile_has_no_fault_that_a_linter_finds(tmp_path: Path) -> None:
    assert lint(DOCKERFILE).stdout == ""
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("${PYTHON} AS", "latest AS"))
    assert "DL3007" in lint(tmp_path / "Dockerfile").stdout


def test_the_image_is_pinned_names_no_index_and_does_not_run_as_root() -> None:
    arguments = dict(argument.partition("=")[::2] for argument in instructions("ARG"))
    assert pinned(f"python:{arguments['PYTHON']}")
    assert arguments["TORCH_INDEX"] == arguments["PIP_INDEX_URL"] == ""
    assert {image.split()[0] for image in instructions("FROM")} == {"python:${PYTHON}"}
    assert instructions("USER") == ["1000:1000"]  # as `fsGroup` in flows/cluster/kubernetes.py
    for run in instructions("RUN"):
        assert "pip install" not in run or "-c deploy/constraints.txt" in run


def test_what_the_image_is_made_of_is_there_and_is_let_into_the_build() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for sources in instructions("COPY"):
        if not sources.startswith("--from"):
            for source in sources.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(entry.startswith(source) for entry in let_in), source


# Compose


def compose(*files: Path, command: str = "config", **environment: str) -> subprocess.CompletedProcess[str]:
    names = [part for file in files for part in ("--file", str(file))]
    return tool("docker-compose", *names, command, "--format=json", **environment)


def composed(*more: Path) -> dict[str, Any]:
    done = compose(COMPOSE, *more, DATA="/somewhere", POSTGRES_PASSWORD="unheard-of", TORCH_INDEX="index")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "unheard-of" not in done.stdout  # a secret stays one
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("more", [(), (COMPOSE.with_name("compose.cuda.yaml"),)], ids=["cpu", "cuda"])
def test_compose_takes_its_files(more: tuple[Path, ...]) -> None:
    services = composed(*more)["services"]
    assert services.keys() >= {"database", "server", "deploy", "worker", "scheduler", "dask-worker"}
    for name, service in services.items():
        assert pinned(service["image"]), name
        assert service["image"] != OURS or service["pull_policy"] == "never", name
        assert service["user"].split(":")[0] not in {"0", "root"}, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["restart"] == "no" or "healthcheck" in service, name
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
        for other, how in service.get("depends_on", {}).items():
            once = services[other]["restart"] == "no"
            assert how["condition"] == ("service_completed_successfully" if once else "service_healthy")


def test_compose_refuses_a_broken_copy_and_missing_data(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text(COMPOSE.read_text().replace("healthcheck:", "health_check:", 1))
    done = compose(broken, DATA="/somewhere", POSTGRES_PASSWORD="x")
    assert done.returncode != 0
    assert "health_check" in done.stderr
    done = compose(COMPOSE, POSTGRES_PASSWORD="x")
    assert done.returncode != 0
    assert "folder with the volumes" in done.stderr


def test_only_networks_without_a_way_out_reach_the_database_and_dask() -> None:
    document = composed()
    inner = {name for name, network in document["networks"].items() if network.get("internal")}
    for name, service in document["services"].items():
        if name != "server":  # which publishes a port
            assert set(service.get("networks") or ()) <= inner, name


# Kubernetes


def rendered() -> list[dict[str, Any]]:
    """The manifests that the kustomization names, with its names of images."""
    customs = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    images = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in customs["images"]}
    found = []
    for file in customs["resources"]:
        for manifest in yaml.safe_load_all((MANIFESTS / file).read_text()):
            for container in pod_of(manifest).get("containers", ()):
                container["image"] = images.get(container["image"], container["image"])
            found.append(manifest)
    return found


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    template = manifest.get("spec", {}).get("template", {})
    spec: dict[str, Any] = template.get("spec", {})
    return spec


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: m for m in rendered() if m["kind"] == kind}


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_schemas_take_the_manifests(version: str) -> None:
    for manifest in rendered():
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(("key", "value"), [("replicas", "one"), ("replica", 1)])
def test_kubernetes_schemas_refuse_a_broken_copy(key: str, value: object) -> None:
    broken = copy.deepcopy(of_kind("Deployment")["server"])
    broken["spec"][key] = value
    with pytest.raises(kubernetes_validate.ValidationError, match=str(value)):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_every_manifest_belongs_to_the_kustomization() -> None:
    customs = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    assert {file.name for file in MANIFESTS.glob("*.yaml")} == {*customs["resources"], "kustomization.yaml"}
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not there: its kustomize was not asked")
    done = subprocess.run(["kubectl", "kustomize", MANIFESTS], capture_output=True, text=True, check=True)
    by_kubectl = list(yaml.safe_load_all(done.stdout))
    assert {m["metadata"].get("namespace") for m in by_kubectl if m["kind"] != "Namespace"} == {"unet-flows"}
    for manifest in by_kubectl:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
    assert images_of(by_kubectl) == images_of(rendered())


def images_of(manifests: list[dict[str, Any]]) -> set[str]:
    return {container["image"] for m in manifests for container in pod_of(m).get("containers", ())}


def test_pods_are_pinned_unprivileged_bounded_and_probed() -> None:
    assert OURS in images_of(rendered())
    for manifest in filter(pod_of, rendered()):
        pod = pod_of(manifest)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert pinned(container["image"])
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert "livenessProbe" in container
        assert {m["name"] for c in pod["containers"] for m in c["volumeMounts"]} <= {
            *(volume["name"] for volume in pod["volumes"]),
            *(claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", ())),
        }


def test_nothing_is_open_beyond_the_namespace() -> None:
    manifests = rendered()
    assert {"Ingress", "ClusterRole", "ClusterRoleBinding", "Secret"}.isdisjoint(m["kind"] for m in manifests)
    for service in of_kind("Service").values():
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    policies = of_kind("NetworkPolicy")
    assert policies["own-pods"]["spec"]["ingress"] == [{"from": [{"podSelector": {}}]}]


def test_a_run_may_make_its_dask_cluster_and_nothing_else(tmp_path: Path) -> None:
    config = read_cluster(str(MANIFESTS / "cluster.toml"), workers=None)
    assert isinstance(config, Kubernetes)
    assert config.namespace in of_kind("Namespace")
    assert config.claim in of_kind("PersistentVolumeClaim")
    assert config.image == OURS
    write_certificates(tmp_path / "tls")
    may = allowed("run")
    for thing in objects("one", config, tmp_path / "tls"):
        group = thing["apiVersion"].rpartition("/")[0]
        assert may[group, f"{thing['kind'].lower()}s"] >= {"create", "delete"}
    assert may["kubernetes.dask.org", "daskworkergroups"] >= {"get", "list", "patch"}
    assert may["", "pods"] == may["", "services"] == {"get", "list"}
    everything = [*may.items(), *allowed("worker").items()]
    assert not any("*" in (*where, *verbs) for where, verbs in everything)


def allowed(role: str) -> dict[tuple[str, str], set[str]]:
    """The verbs by API group and resource, of a role that is bound to the account of that name."""
    binding = of_kind("RoleBinding")[role]
    assert binding["roleRef"]["name"] == role
    assert [subject["name"] for subject in binding["subjects"]] == [role]
    assert role in of_kind("ServiceAccount")
    return {
        (group, resource): set(rule["verbs"])
        for rule in of_kind("Role")[role]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_the_jobs_of_runs_name_what_the_manifests_make() -> None:
    properties = json.loads((DEPLOY / "work-pools" / "kubernetes.json").read_text())["variables"][
        "properties"
    ]
    default = {name: field.get("default") for name, field in properties.items()}
    assert default["namespace"] in of_kind("Namespace")
    assert default["service_account_name"] in of_kind("ServiceAccount")
    (volume,) = default["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] in of_kind("PersistentVolumeClaim")
    # As `unet-flows deploy --pool-type kubernetes` names it.
    (container,) = pod_of(of_kind("Deployment")["worker"])["containers"]
    assert "--pool=unet-flows-kubernetes" in container["args"]


# SLURM


def test_the_batch_script_has_no_fault_that_a_linter_finds() -> None:
    assert subprocess.run(["bash", "-n", BATCH], check=False).returncode == 0
    done = tool("shellcheck", BATCH)
    assert done.returncode == 0, done.stdout


def test_the_profile_is_valid_also_with_what_is_to_be_filled_in(tmp_path: Path) -> None:
    text = (DEPLOY / "slurm" / "cluster.toml").read_text()
    filled = tmp_path / "cluster.toml"
    filled.write_text(re.sub(r"^# (?=\w+ +=|\w+ =)", "", text, flags=re.MULTILINE))
    for file in (DEPLOY / "slurm" / "cluster.toml", filled):
        config = read_cluster(str(file), workers=None)
        assert isinstance(config, Slurm)
        assert isinstance(config.cpu, Slurm)
    assert config.directives
    assert config.cpu.queue is not None


# Commands and settings, wherever they stand


_RUN_BY = r"(?:(?:sbatch|dc exec|docker run) .*?)?"
_COMMAND = rf"^[# ]*{_RUN_BY}\b((?:unet-flows(?:\.sbatch)? [a-z]|dask scheduler ).*?)(?:   .*)?$"


def commands() -> Iterator[list[str]]:
    """Every command line under deploy/; three spaces part it from words about it."""
    for file in sorted(DEPLOY.rglob("*")):
        if file.is_file() and file.suffix not in {".json", ".pyc"}:
            text = re.sub(r"\\\n[# ]*", "", file.read_text())
            for line in re.findall(_COMMAND, text, flags=re.MULTILINE):
                yield shlex.split(line.replace("unet-flows.sbatch", "unet-flows"), comments=True)
    for service in composed()["services"].values():
        yield service.get("command") or []
    for manifest in rendered():
        for container in pod_of(manifest).get("containers", ()):
            yield container.get("args") or []


def parsed(command: list[str]) -> str | None:
    """The command's name, once its options were understood; None for other programs."""
    match command:
        case ["sh", "-c", script]:
            return parsed(shlex.split(script.partition("||")[2]))
        case ["dask", "scheduler", *options]:
            # Dask asks whether certificates are there.
            there = [re.sub(r"[^=]*\.pem$", __file__, option) for option in options]
            dask_scheduler.make_context("scheduler", there)
            return "dask scheduler"
        case ["unet-flows", name, *options]:
            group = typer.main.get_command(app)
            assert isinstance(group, click.Group | typer.core.TyperGroup)
            assert name in group.commands, name
            group.commands[name].make_context(name, options)
            return name
    return None


def test_every_command_is_one_and_takes_its_options() -> None:
    names = {parsed(command) for command in commands()}
    assert names >= {"certificates", "dask scheduler", "deploy", "doctor", "segment", "status", "worker"}
    with pytest.raises(Exception, match="No such option"):
        parsed(["unet-flows", "worker", "tls://scheduler:8786", "--certificates=x"])


def settings(model: type[PrefectBaseSettings]) -> Iterator[str]:
    """The environment variables that set one of these."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, PrefectBaseSettings):
            yield from settings(field.annotation)
        else:
            yield f"{model.model_config['env_prefix']}{name}".upper()


def test_every_setting_of_prefect_is_one() -> None:
    files = (DOCKERFILE, COMPOSE, BATCH, *MANIFESTS.glob("*.yaml"))
    told = {name for file in files for name in re.findall(r"\bPREFECT_[A-Z_]+", file.read_text())}
    # Those of prefect-kubernetes, which only the image has, are its own.
    own = {name for name in told if name.startswith("PREFECT_INTEGRATIONS_")}
    assert {"PREFECT_HOME", "PREFECT_API_URL"} <= told - own <= set(settings(Settings))
