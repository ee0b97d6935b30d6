"""TLS between flow, scheduler and workers: who holds the key belongs to the run, nobody else gets in.

Dask sends code. A scheduler or worker that listens beyond loopback without TLS runs the code of whoever
reaches its port. Its TLS is mutual: all show a certificate that one authority, made with it, has signed.
"""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed.security import Security

from unet_core.errors import InputError

CA, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"
_VALID = datetime.timedelta(days=400)  # longer than a run, and than deployments are left alone
_SKEW = datetime.timedelta(days=1)  # clocks of other machines are behind


def write_certificates(folder: Path) -> None:
    """A new authority's certificate, and a certificate with its key; only the user may read them.

    The authority's own key is not kept: nobody can sign more.

    Raises
    ------
    InputError
        The folder holds some already, or cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(subject: str, owner: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("unet-flows authority"))
            .public_key(owner.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + _VALID)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(owner.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
            )
        )
        return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)

    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    contents = {
        CA: certificate("unet-flows authority", authority, ca=True),
        CERTIFICATE: certificate("unet-flows", key, ca=False),
        KEY: private,
    }
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file, content in contents.items():
            # Made with its mode, and new: never readable by others, not even for a moment.
            with os.fdopen(os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(content)
    except FileExistsError:
        raise InputError(
            "there are certificates already", where=folder, fix="use them, or choose another folder"
        ) from None
    except OSError as error:
        raise InputError("certificates cannot be written", where=folder, found=error.strerror) from None


def options_of(folder: str | Path) -> list[str]:
    """What Dask's commands are told of the certificates in a folder."""
    files = (("ca-file", CA), ("cert", CERTIFICATE), ("key", KEY))
    return [f"--tls-{option}={folder}/{file}" for option, file in files]


def security_of(folder: Path) -> Security:
    """Dask's settings for the certificates in a folder.

    Raises
    ------
    InputError
        A file is missing, cannot be read, or others may read the key.
    """
    for file in (CA, CERTIFICATE, KEY):
        try:
            (folder / file).read_bytes()
        except OSError as error:
            raise InputError(
                "this certificate cannot be read",
                where=folder / file,
                found=error.strerror,
                fix="make a set, unet-flows certificates FOLDER, and bring it to all that take part",
            ) from None
    if (mode := (folder / KEY).stat().st_mode) & 0o077:
        raise InputError(
            "others may read this key",
            where=folder / KEY,
            expected="mode 600",
            found=f"mode {mode & 0o777:o}",
            fix=f"chmod 600 {folder / KEY}",
        )
    certificate, key = str(folder / CERTIFICATE), str(folder / KEY)
    return Security(
        tls_ca_file=str(folder / CA),
        tls_client_cert=certificate,
        tls_client_key=key,
        tls_scheduler_cert=certificate,
        tls_scheduler_key=key,
        tls_worker_cert=certificate,
        tls_worker_key=key,
        require_encryption=True,
    )


@contextmanager
def of_this_run(shared: Path) -> Iterator[Path]:
    """A folder in `shared` with certificates for one run; taken away afterwards.

    Raises
    ------
    InputError
        `shared` cannot be written.
    """
    try:
        shared.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="tls-", dir=shared))  # for the user alone
    except OSError as error:
        raise InputError(
            "the folder for certificates cannot be written",
            where=shared,
            found=error.strerror,
            fix="name another that this machine and the workers see: `shared` in the cluster's table",
        ) from None
    try:
        write_certificates(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
