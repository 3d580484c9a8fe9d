"""Tokens, addresses, TLS, web pages, and what strangers may look at."""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
import urllib.error
import urllib.request

import pytest
from policy_servers import TOKEN, observation, serving, total, until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from diffpolicy_spec.control import Plan, PlanRequest
from diffpolicy_spec.server import (
    Client,
    ConnectionLost,
    Limits,
    PolicyServer,
    RemotePlanner,
    ServerConfig,
    Unauthorized,
)
from diffpolicy_spec.server.auth import check_binding, client_of, is_loopback, read_tokens

OTHER = "battery-staple-correct"


def get(server, path: str, token: str | None = None, scheme: str = "Api-Key") -> tuple[int, str]:
    request = urllib.request.Request(server.url.replace("ws", "http", 1) + path)
    if token is not None:
        request.add_header("Authorization", f"{scheme} {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(autouse=True)
def no_token_around(monkeypatch):
    monkeypatch.delenv("DPS_TOKEN", raising=False)


@pytest.fixture(scope="module")
def guarded():
    with serving(tokens={"arm": TOKEN, "leg": OTHER}) as server:
        yield server


def test_a_right_token_opens_and_no_other(guarded, monkeypatch):
    for token in (TOKEN, OTHER):
        with Client(guarded.url, token=token) as client:
            assert client.infer(observation()).actions.shape == (15, 10)
    before = total(guarded, "auth_failures_total")
    for token in (None, "", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ümlaut-token-token"):
        with pytest.raises((Unauthorized, ConnectionLost), match=r"401|cannot be reached"):
            Client(guarded.url, token=token)
    assert total(guarded, "auth_failures_total") >= before + 5
    monkeypatch.setenv("DPS_TOKEN", TOKEN)
    Client(guarded.url).close()


def test_health_is_for_everyone_and_metrics_are_not(guarded):
    assert get(guarded, "/healthz") == (200, "OK\n")
    assert get(guarded, "/readyz") == (200, "OK\n")
    assert get(guarded, "/metrics")[0] == 401
    assert get(guarded, "/metrics", "no such token at all")[0] == 401
    for scheme in ("Api-Key", "Bearer", "bearer"):
        status, text = get(guarded, "/metrics", TOKEN, scheme)
        assert status == 200
    assert get(guarded, "/metrics", TOKEN, "Basic")[0] == 401
    with serving(tokens={"arm": TOKEN}, open_metrics=True) as server:
        assert get(server, "/metrics")[0] == 200
    assert TOKEN not in text


def test_metrics_are_prometheus_text_that_counts(server):
    parser = pytest.importorskip("prometheus_client.parser")
    with Client(server.url) as client:
        for deadline in (None, 0.0):
            client.infer(observation(), deadline_ms=deadline)
        until(lambda: client.infer(observation()).cost.accepted > 0)
        status, text = get(server, "/metrics")
    assert status == 200
    samples = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    own = ("protocol", "dps.v1")
    assert samples["dps_requests_total", (own,)] >= 2
    assert samples["dps_chunks_total", (("exact", "yes"), own)] >= 1
    assert samples["dps_chunks_total", (("exact", "no"), own)] >= 1
    for stage in ("read", "queue", "sampling", "answer", "total"):
        assert samples["dps_stage_seconds_count", (("stage", stage),)] >= 2
    assert samples["dps_accepted_steps_total", ()] > 0
    assert samples["dps_connections", (own,)] == 1
    assert [v for (name, labels), v in samples.items() if name == "dps_policy_info"] == [1]


def test_web_pages_may_not_connect_unless_they_are_named():
    with serving(origins=["https://lab.example"]) as server:
        with pytest.raises(InvalidStatus, match="403"), connect(server.url, origin="https://evil.example", proxy=None):
            pass
        with connect(server.url, origin="https://lab.example", proxy=None) as page:
            page.recv(5)
    with serving() as server, pytest.raises(InvalidStatus, match="403"):  # noqa: SIM117
        with connect(server.url, origin="http://localhost", proxy=None):
            pass


def test_other_addresses_need_a_token():
    with pytest.raises(ValueError, match=re.escape("host=0.0.0.0 is open to others on the network")):
        PolicyServer("lift", ServerConfig(host="0.0.0.0"))
    check_binding("0.0.0.0", {"arm": TOKEN}, insecure=False)
    check_binding("0.0.0.0", {}, insecure=True)
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert is_loopback(host)
        check_binding(host, {}, insecure=False)
    for host in ("", "::", "gpu-box", "192.168.0.3", "localhost.example"):
        assert not is_loopback(host)
        with pytest.raises(ValueError, match="is open to others"):
            check_binding(host, {}, insecure=False)
    with serving(host="0.0.0.0", tokens={"arm": TOKEN}) as server, Client(server.url, token=TOKEN) as client:
        client.infer(observation())


def test_tokens_come_from_the_environment_a_file_and_settings(tmp_path, monkeypatch):
    file = tmp_path / "tokens"
    file.write_text(f"# who may\narm: {TOKEN}\n\n{OTHER}   # the leg's\n")
    assert read_tokens(None, file) == {"arm": TOKEN, "line4": OTHER}
    assert read_tokens(TOKEN) == {"default": TOKEN}
    assert read_tokens({"a": TOKEN, "b": OTHER}) == {"a": TOKEN, "b": OTHER}
    monkeypatch.setenv("DPS_TOKEN", OTHER)
    assert read_tokens(TOKEN) == {"default": TOKEN, "environment": OTHER}
    assert read_tokens(environment=False) == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("short", "at least 16 characters"),
        ("with spaces in between them", "no spaces"),
        ({"a b": TOKEN}, "name must be"),
        ({"a": TOKEN, "b": TOKEN}, "given twice"),
        ({"a": 12345678901234567}, None),
    ],
)
def test_tokens_that_are_none_are_told(given, told):
    if told is None:
        assert read_tokens(given) == {"a": "12345678901234567"}
        return
    with pytest.raises(ValueError, match=told):
        read_tokens(given)


def test_a_file_without_tokens_is_told(tmp_path):
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no tokens"):
        read_tokens(None, tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        read_tokens(None, tmp_path / "none")


def test_headers_are_read_strictly():
    tokens = {"arm": TOKEN}
    assert client_of(f"Api-Key {TOKEN}", tokens) == "arm"
    assert client_of(f"bearer  {TOKEN} ", tokens) == "arm"
    for header in (None, "", TOKEN, f"Api-Key{TOKEN}", f"Basic {TOKEN}", "Api-Key", "Api-Key ", f"Api-Key {TOKEN},x"):
        assert client_of(header, tokens) is None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(cert, key) PEM files for 127.0.0.1, signed by itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(secret)
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_tls_is_spoken_and_checked(certificate):
    cert, key = certificate
    with serving(tls_cert=cert, tls_key=key, tokens={"arm": TOKEN}) as server:
        assert server.url.startswith("wss://")
        with Client(server.url, token=TOKEN, tls_ca=cert) as client:
            assert client.infer(observation()).actions.shape == (15, 10)
        with pytest.raises(ConnectionLost, match="CERTIFICATE_VERIFY_FAILED"):
            Client(server.url, token=TOKEN)
        with pytest.raises(ConnectionLost, match="cannot be reached"):
            Client(server.url.replace("wss", "ws"), token=TOKEN, connect_timeout=2)
        planner = RemotePlanner(server.url, token=TOKEN, tls_ca=cert)
        planner.start()
        until(lambda: planner.ready)
        planner.submit(PlanRequest(1, observation(), 0.0))
        came = []
        until(lambda: came.extend(planner.poll()) or came)
        assert isinstance(came[0], Plan)
        planner.close()
        with pytest.raises(InvalidStatus, match="401"):  # noqa: SIM117
            with connect(server.url, ssl=ssl.create_default_context(cafile=cert), proxy=None):
                pass


def test_certificates_that_are_none_are_told(tmp_path):
    (tmp_path / "cert.pem").write_text("no certificate")
    both = {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "cert.pem")}
    with pytest.raises(OSError, match="are no certificate and its key"):
        PolicyServer("lift", ServerConfig(**both))
    with pytest.raises(ValueError, match="TLS needs both"):
        ServerConfig(tls_cert="cert.pem")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"history": "some"}, "history must be repeat or consecutive"),
        ({"actions_returned": "all"}, "actions_returned must be"),
        ({"port": 70000}, "port must be"),
        ({"port": "x"}, "port must be a whole number"),
        ({"drain_s": 0}, "drain_s must be a positive number"),
        ({"max_chains": 0}, "max_chains must be"),
    ],
)
def test_settings_that_cannot_be_are_told(settings, told):
    with pytest.raises(ValueError, match=told):
        ServerConfig(**settings)


@pytest.mark.parametrize("limits", [{"burst": 0}, {"max_connections": 1.5}, {"ping_s": float("nan")}, {"send_s": "x"}])
def test_limits_that_cannot_be_are_told(limits):
    with pytest.raises(ValueError, match=f"limits: {next(iter(limits))} must be"):
        Limits(**limits)
