"""What is delivered for running the server: read and checked, since no image is built here."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from edge_sdk import cli
from server.settings.settings_sources import find_settings, setting_kinds, variable_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "onnxruntime", "gguf"}
LABELS = {"app.kubernetes.io/name": "edge-server"}


def read_yaml(path):
    (found,) = yaml.safe_load_all((DEPLOY / path).read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def dockerfile():
    """The instructions of the Dockerfile, one a line."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def compose():
    return read_yaml("compose.yaml")


@pytest.fixture(scope="module")
def manifests():
    """The Kubernetes objects by kind."""
    names = read_yaml("kubernetes/kustomization.yaml")["resources"]
    return {found["kind"]: found for found in (read_yaml(f"kubernetes/{name}") for name in names)}


@pytest.fixture(scope="module")
def pod(manifests):
    return manifests["Deployment"]["spec"]["template"]["spec"]


def required_by(extra):
    """The names of all packages that one extra of ours installs, its own extras followed."""
    found = set()
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == "edge-sdk":
            found |= {name for inner in requirement.extras for name in required_by(inner)}
        else:
            found |= {requirement.name}
    return found


def closure(names):
    """Installed packages and everything they need, as far as this environment knows."""
    seen, left = set(), {(name, frozenset()) for name in names}
    while left:
        name, extras = left.pop()
        seen.add((name, extras))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, needs):
            environments = [{"extra": extra} for extra in (*extras, "")]
            marker = requirement.marker
            if marker is None or any(marker.evaluate(each) for each in environments):
                left |= {(requirement.name, frozenset(requirement.extras))} - seen
    return {re.sub("[-_.]+", "-", name).lower() for name, _ in seen}


def instructions(dockerfile, name):
    return [line.split(maxsplit=1)[1] for line in dockerfile if line.startswith(f"{name} ")]


def test_the_image_installs_the_server_and_nothing_that_trains(dockerfile):
    (installed,) = re.findall(r'pip install --no-cache-dir "\.\[(\w+)\]"', "\n".join(dockerfile))
    plain = {Requirement(text).name for text in PROJECT["dependencies"]}
    needed = closure(plain | required_by(installed))
    assert {"fastapi", "uvicorn", "psycopg", "obstore", "starlette"} <= needed
    assert needed & HEAVY == set()


def test_the_image_runs_as_nobody_special_on_any_architecture(dockerfile):
    assert instructions(dockerfile, "USER") == ["10001:10001"]
    bases = instructions(dockerfile, "FROM")
    assert [base.split()[0] for base in bases] == ["python:${PYTHON}-slim"] * 2
    assert not re.search(r"amd64|x86_64|arm64|aarch64", "\n".join(dockerfile))
    assert not re.search(r"apt-get|curl|wget|sudo|chmod 777", "\n".join(dockerfile))


def test_the_image_says_how_its_health_is_asked(dockerfile):
    (check,) = instructions(dockerfile, "HEALTHCHECK")
    code = yaml.safe_load(check.split("CMD ")[1])[2]
    compile(code, "healthcheck", "exec")
    assert "/healthz" in code
    assert instructions(dockerfile, "ENTRYPOINT") == ['["edge-server"]']


def test_the_image_copies_what_exists_and_what_its_ignore_file_lets_through(dockerfile):
    lines = [line for line in instructions(dockerfile, "COPY") if not line.startswith("--from")]
    copied = {name for line in lines for name in line.split()[:-1]}
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def test_the_settings_of_every_delivery_are_settings(compose, manifests, tmp_path):
    variables = {variable_of(name) for name in setting_kinds()} | {"EDGE_SERVER_CONFIG"}
    for file in DEPLOY.rglob("*"):
        if file.is_file():
            named = set(re.findall(r"EDGE_SERVER_[A-Z_]+", file.read_text(encoding="utf-8")))
            assert named <= variables, file
    (text,) = manifests["ConfigMap"]["data"].values()
    (tmp_path / "edge-server.toml").write_text(text)
    settings = find_settings({"config": tmp_path / "edge-server.toml"}, {}).settings
    assert settings.drain_s > 0
    environment = compose["services"]["server-1"]["environment"]
    ours = {name: text for name, text in environment.items() if name.startswith("EDGE_SERVER_")}
    settings = find_settings({}, ours).settings
    assert settings.blob_url == "s3://edge"
    (subnet,) = compose["networks"]["inside"]["ipam"]["config"]
    assert settings.forwarded_allow_ips == (subnet["subnet"],)


def test_compose_runs_two_replicas_behind_a_proxy_and_only_that_is_published(compose):
    services = compose["services"]
    assert {"server-1", "server-2", "proxy", "postgres", "objects"} == services.keys()
    assert [name for name, each in services.items() if "ports" in each] == ["proxy"]
    assert services["proxy"]["ports"] == ["127.0.0.1:8765:8080"]
    for name in ("server-1", "server-2"):
        server = services[name]
        assert server["read_only"] is True
        assert server["cap_drop"] == ["ALL"]
        assert server["depends_on"].keys() == {"postgres", "objects"}
        assert server["networks"] == ["inside"]
    assert compose["networks"]["inside"]["internal"] is True


def test_compose_has_no_secret_of_its_own(compose):
    needed = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    offered = dict(
        line.split("=", 1)
        for line in (DEPLOY / "env.example").read_text().splitlines()
        if not line.startswith("#")
    )
    assert needed == offered.keys()
    assert set(offered.values()) == {""}


def test_compose_names_only_volumes_services_and_files_it_has(compose):
    for each in compose["services"].values():
        assert set(each.get("depends_on", [])) <= compose["services"].keys()
        for volume in each.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file()
        if "build" in each:
            assert (DEPLOY / each["build"]["context"] / each["build"]["dockerfile"]).is_file()
        else:
            assert re.search(r":[\w.-]*\d[\w.-]*$", each["image"]), "an image has a version"


def test_the_proxy_knows_both_replicas_and_buffers_no_upload(compose):
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert set(re.findall(r"server ([\w-]+):8765", text)) == {"server-1", "server-2"}
    assert "proxy_request_buffering off;" in text
    assert "client_max_body_size 0;" in text
    assert re.search(r"location = /metrics \{\s*return 404;", text)
    assert text.count("{") == text.count("}")


def test_kubernetes_keeps_two_replicas_while_it_replaces_them(manifests):
    assert manifests.keys() == {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget"}
    deployment = manifests["Deployment"]["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert manifests["PodDisruptionBudget"]["spec"]["minAvailable"] == 1


def test_kubernetes_objects_select_the_same_pods(manifests):
    deployment = manifests["Deployment"]["spec"]
    assert deployment["template"]["metadata"]["labels"] == LABELS
    assert deployment["selector"]["matchLabels"] == LABELS
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == LABELS
    assert manifests["Service"]["spec"]["selector"] == LABELS
    assert manifests["Service"]["spec"]["ports"][0]["targetPort"] == "http"


def test_kubernetes_gives_the_container_no_rights_it_does_not_need(pod):
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert {"requests", "limits"} == container["resources"].keys()


def test_kubernetes_asks_the_probes_and_waits_for_what_is_under_way(pod, manifests):
    (container,) = pod["containers"]
    asked = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert asked == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    (text,) = manifests["ConfigMap"]["data"].values()
    readiness = container["readinessProbe"]
    unready_s = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert tomllib.loads(text)["drain_s"] > unready_s
    assert pod["terminationGracePeriodSeconds"] > tomllib.loads(text)["drain_s"] + 10


def test_no_variable_of_a_service_can_pass_for_a_setting(pod):
    """Kubernetes would set EDGE_SERVER_PORT=tcp://… for a service named edge-server."""
    assert pod["enableServiceLinks"] is False


def test_kubernetes_mounts_only_volumes_and_secrets_there_are(pod):
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    secret = read_yaml("kubernetes/secret.example.yaml")
    asked = {each["valueFrom"]["secretKeyRef"]["key"] for each in container["env"]}
    keys = {
        item["key"] for each in pod["volumes"] for item in each.get("secret", {}).get("items", [])
    }
    assert asked | keys == secret["stringData"].keys()
    writable = {
        mount["mountPath"] for mount in container["volumeMounts"] if "readOnly" not in mount
    }
    assert writable == {"/tmp", "/var/lib/edge-server"}


@pytest.fixture
def unit(tmp_path):
    """The systemd unit, with a program that exists on this machine."""
    text = (DEPLOY / "edge-server.service").read_text(encoding="utf-8")
    path = tmp_path / "edge-server.service"
    path.write_text(text.replace("/opt/edge-server/bin/edge-server", "/bin/true"))
    return path


def analyze(*words):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on this machine")
    return subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_unit_is_hardened():
    text = (DEPLOY / "edge-server.service").read_text(encoding="utf-8")
    lines = text.splitlines()
    for line in (
        "User=edge-server",
        "StateDirectory=edge-server",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "SystemCallFilter=@system-service",
    ):
        assert line in lines
    assert "/etc/edge-server/edge-server.toml" in text


def test_systemd_finds_nothing_wrong_with_the_unit(unit):
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_finds_nothing_wrong_with_the_agents_unit_and_edge_sdk_knows_its_words(tmp_path):
    text = (DEPLOY / "edge-agent.service").read_text(encoding="utf-8")
    path = tmp_path / "edge-agent.service"
    path.write_text(text.replace("%h/.local/bin/edge-sdk", "/bin/true"))
    done = analyze("verify", "--man=no", path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (command,) = re.findall(r"^ExecStart=%h/.local/bin/edge-sdk (.*)$", text, re.MULTILINE)
    words = command.replace("${EDGE_DATA}", "notes.jsonl").split()
    assert cli._parser().parse_args(words).data == Path("notes.jsonl")


def test_systemd_calls_the_unit_well_protected(unit):
    """Its scale goes from 10, exposed, to 0; below 2 it says OK."""
    done = analyze("security", "--offline=true", "--threshold=20", "--no-pager", unit)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_kubectl_can_put_the_manifests_together():
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl on this machine")
    done = subprocess.run(
        [program, "kustomize", DEPLOY / "kubernetes"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(yaml.safe_load_all(done.stdout))) == 4
