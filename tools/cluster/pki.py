"""One CA, the certificates it signs, the service accounts' key pair, and the kubeconfigs made of them."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tools.cluster.paths import NODE, Paths
from tools.cluster.shell import write

SERVER_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
LIFETIME = dt.timedelta(days=3650)


@dataclass(frozen=True)
class Client:
    """Who a client certificate says its bearer is."""

    name: str
    user: str
    group: str | None = None


CLIENTS = (
    Client("admin", "fettle-admin", "system:masters"),
    Client("controller-manager", "system:kube-controller-manager"),
    Client("scheduler", "system:kube-scheduler"),
    Client("kubelet", f"system:node:{NODE}", "system:nodes"),
    Client("kube-proxy", "system:kube-proxy"),
    Client("apiserver-kubelet", "fettle-apiserver", "system:masters"),
)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure(paths: Paths) -> bool:
    """Make whatever is missing; whether anything was. One missing file means all anew: they belong together."""
    folder, cluster = paths.pki, paths.cluster
    names = ["ca", "server", *(client.name for client in CLIENTS)]
    wanted = [folder / f"{name}.{kind}" for name in names for kind in ("crt", "key")] + [
        folder / "sa.key",
        folder / "sa.pub",
    ]
    if all(path.exists() for path in wanted):
        return False
    authority = _authority(folder)
    addresses = ("127.0.0.1", cluster.address, cluster.api_service)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in SERVER_NAMES]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    _issue(folder, "server", Client("server", "kube-apiserver"), authority, alternatives)
    for client in CLIENTS:
        _issue(folder, client.name, client, authority, None)
    accounts = ec.generate_private_key(ec.SECP256R1())
    write(folder / "sa.key", _pem(accounts), 0o600)
    public = accounts.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write(folder / "sa.pub", public.decode())
    return True


def kubeconfig(paths: Paths, client: str) -> str:
    """A kubeconfig with its certificates inside, so that it can be copied."""

    def data(name: str) -> str:
        return base64.b64encode((paths.pki / name).read_bytes()).decode()

    context, server = paths.cluster.name, {"server": paths.cluster.server, "certificate-authority-data": data("ca.crt")}
    user = {"client-certificate-data": data(f"{client}.crt"), "client-key-data": data(f"{client}.key")}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": context,
            "clusters": [{"name": context, "cluster": server}],
            "users": [{"name": client, "user": user}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": client}}],
        },
        sort_keys=False,
    )


def _authority(folder: Path) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fettle-ca")])
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    builder = _builder(name, key).issuer_name(name).add_extension(x509.BasicConstraints(True, None), critical=True)
    certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    _store(folder, "ca", certificate, key)
    return Authority(certificate, key)


def _issue(
    folder: Path, name: str, client: Client, authority: Authority, alternatives: list[x509.GeneralName] | None
) -> None:
    """Sign a server's certificate where alternative names are given, else a client's."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, client.user)]
    if client.group:
        subject.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, client.group))
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if alternatives is None else ExtendedKeyUsageOID.SERVER_AUTH
    builder = _builder(x509.Name(subject), key).issuer_name(authority.certificate.subject)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    # Python 3.13 and newer refuse a chain whose leaf does not name its issuer's key.
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    if alternatives is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    _store(folder, name, builder.sign(authority.key, hashes.SHA256()), key)


def _builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # a machine's clock may go back
        .not_valid_after(now + LIFETIME)
        .add_extension(identifier, critical=False)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _store(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    write(folder / f"{name}.key", _pem(key), 0o600)
    write(folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM).decode())
