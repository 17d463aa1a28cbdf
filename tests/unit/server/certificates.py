"""Certificates as cert-manager puts them into a Secret."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


class Authority:
    """An authority, and the certificates that it signs for 127.0.0.1."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._signed(self._name, self._key, authority=True, days=1)

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        authority: bool,
        days: float,
        hosts: Sequence[str] = ("localhost",),
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        until = now + datetime.timedelta(days=days)
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, hosts)]
        usage = x509.KeyUsage(True, False, False, False, False, authority, authority, False, False)
        # Python 3.13 and newer refuse a chain that does not say which key signed what.
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, until) - datetime.timedelta(hours=1))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(own, critical=False)
            .add_extension(issuer, critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, folder: Path, name: str = "server", days: float = 1, hosts: Sequence[str] = ("localhost",)) -> Path:
        """A new certificate in `folder`, exchanged as the kubelet does it: at once. Its serial number is that of `serial`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._signed(subject, key, authority=False, days=days, hosts=hosts)
        private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        files = {
            "tls.crt": certificate.public_bytes(PEM),
            "tls.key": private,
            "ca.crt": self.certificate.public_bytes(PEM),
        }
        folder.mkdir(exist_ok=True)
        version = folder / f"..{certificate.serial_number}"
        version.mkdir()
        for file, content in files.items():
            (version / file).write_bytes(content)
            if not (folder / file).is_symlink():
                (folder / file).symlink_to(Path("..data") / file)
        following = folder / "..following"
        following.symlink_to(version.name)
        following.rename(folder / "..data")
        return folder


def serial(pem: str) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(pem.encode()).serial_number
