"""deploy/: what a unit, an image and a chart say of the server is true of the server.

No image is built and no cluster is asked. Templates are rendered where `helm` is installed.
"""

from __future__ import annotations

import configparser
import fnmatch
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml

from turret_server.api.auth import OPEN
from turret_server.cli.main import _typer

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "turret"
ALL = (
    "replicas=2",
    "state.accessMode=ReadWriteMany",
    "secret=keys",
    "adapters.claim=adapters",
    *(f"{p}.enabled=true" for p in ("podDisruptionBudget", "serviceMonitor", "gateway")),
    "autoscaling.enabled=true",
)


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Those of `turret serve`."""
    commands = typer.main.get_command(_typer).commands  # pyright: ignore[reportAttributeAccessIssue]
    return {flag for parameter in commands["serve"].params for flag in parameter.opts}


def used_flags(text: str) -> set[str]:
    return set(re.findall(r"(?:^|[\s\"])(--[a-z][a-z-]+)", text))


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / "turret.service")
    return parser


def test_the_unit_starts_reloads_and_ends_the_server_as_it_wants_to_be(unit, flags):
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert used_flags(service["ExecStart"]) <= flags
    drain_s = float(re.findall(r"--drain-s (\d+)", service["ExecStart"])[0])
    assert float(service["TimeoutStopSec"]) >= drain_s + 5
    assert service["DynamicUser"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert "TURRET_CACHE=/var/cache/turret" in service["Environment"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path):
    text = (DEPLOY / "systemd" / "turret.service").read_text()
    (tmp_path / "turret.service").write_text(text.replace("/opt/turret/bin/turret", "/bin/true"))
    run = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "turret.service"], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_the_image_is_built_of_files_that_docker_sees_and_runs_as_nobody(flags):
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert set(copied) == set(allowed)
    assert all((ROOT / source).exists() for source in copied)
    assert re.search(r"^USER [1-9]", text, re.MULTILINE)
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert used_flags(" ".join(json.loads(command))) <= flags
    (health,) = re.findall(r"127\.0\.0\.1:8000(/\w+)", text)
    assert health in OPEN


@pytest.mark.parametrize("path", ["pyproject.toml", "server/turret_server/errors.py"])
def test_what_the_image_needs_is_not_ignored(path):
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if line and line[0] != "#" and fnmatch.fnmatch(path.split("/")[0], pattern):
            ignored = line[0] != "!"
    assert not ignored


@pytest.fixture(scope="module")
def deployment() -> str:
    return (CHART / "templates" / "deployment.yaml").read_text()


def test_the_chart_uses_flags_and_routes_that_exist(deployment, flags):
    assert used_flags(deployment) <= flags
    probes = re.findall(r"httpGet: \{path: (\S+),", deployment)
    assert sorted(probes) == ["/health", "/health", "/ready"]
    assert set(probes) <= OPEN
    # A Service named "turret" would set TURRET_PORT to a URL, and the server would not start.
    assert "enableServiceLinks: false" in deployment


def test_the_values_are_what_their_schema_says():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    assert values.keys() <= schema["properties"].keys()
    for wrong in (
        {"replica": 1},
        {"replicas": "one"},
        {"extraArgs": ["max-running=3"]},
        {"state": {"accessMode": "ReadOnlyMany"}},
        {"cache": {"size": "20"}},
        {"gateway": {"enabled": True}},  # without keys, for all whom the gateway lets through
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**values, **wrong}, schema)
    jsonschema.validate({**values, "gateway": {"enabled": True}, "secret": "keys"}, schema)


def test_every_value_is_used():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = "".join(p.read_text() for p in sorted((CHART / "templates").iterdir()))
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", text))
    for name, value in values.items():
        is_group = isinstance(value, dict) and value and name != "resources"
        for path in [f"{name}.{key}" for key in value] if is_group else [name]:
            assert path in used, path


def render(*settings: str) -> list[dict]:
    flags = [f"--set={setting}" for setting in settings]
    run = subprocess.run(
        ["helm", "template", "t", str(CHART), *flags], capture_output=True, text=True, check=True
    )
    return [document for document in yaml.safe_load_all(run.stdout) if document]


@pytest.mark.skipif(not shutil.which("helm"), reason="needs helm")
def test_helm_renders_the_chart():
    by_kind = {document["kind"]: document for document in render()}
    assert set(by_kind) == {"ConfigMap", "PersistentVolumeClaim", "Service", "Deployment"}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 45
    every = {document["kind"]: document for document in render(*ALL)}
    assert {"InferencePool", "InferenceObjective", "HTTPRoute", "ScaledObject"} <= every.keys()
    labels = every["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert every["InferencePool"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    with pytest.raises(subprocess.CalledProcessError):
        render("replicas=2")
