"""Certificates for an engine that listens with TLS, and for its clients, made anew with openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from servers import StartError

DAYS = "2"
CONFIG = """
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
[client]
extendedKeyUsage = clientAuth
"""


@dataclass(frozen=True)
class Certificates:
    """A folder for each side, as DOCKER_CERT_PATH wants it: ca.pem, cert.pem and key.pem."""

    server: Path
    client: Path

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Make an authority that nobody else knows, and a certificate of it for 127.0.0.1 and one for a client.

        :raises StartError: openssl is not there.
        """
        openssl = shutil.which("openssl")
        if openssl is None:
            raise StartError("openssl is not on PATH")
        directory.mkdir(parents=True)
        config = directory / "openssl.cnf"
        config.write_text(CONFIG)
        made = cls(directory / "server", directory / "client")
        authority: list[str | Path] = ["-keyout", directory / "ca-key.pem", "-out", directory / "ca.pem"]
        by_authority: list[str | Path] = ["-CA", directory / "ca.pem", "-CAkey", directory / "ca-key.pem"]

        def request(name: str, *arguments: str | Path) -> None:
            key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
            named: list[str | Path] = [
                "-config",
                config,
                "-subj",
                f"/CN=holdfast-test-{name}",
                "-extensions",
                name,
                "-days",
                DAYS,
            ]
            subprocess.run([openssl, "req", "-x509", *key, *named, *arguments], check=True, capture_output=True)

        request("authority", *authority)
        for folder in (made.server, made.client):
            folder.mkdir()
            shutil.copy(directory / "ca.pem", folder)
            request(folder.name, *by_authority, "-keyout", folder / "key.pem", "-out", folder / "cert.pem")
        return made
