"""TLS: the certificate and the key that the settings name, as the server's sockets need them."""

from __future__ import annotations

import ssl
from pathlib import Path

from polargrid_local.errors import ValidationError, refused
from polargrid_local.server.config import ServeConfig


def server_context(config: ServeConfig) -> ssl.SSLContext | None:
    """None where no certificate is set. Raises ValidationError naming the setting whose file is missing, unreadable,
    of no use, or does not go with the other."""
    if config.ssl_certfile is None:
        return None
    cert, key = config.ssl_certfile, config.ssl_keyfile
    _read("ssl_certfile", cert)
    if key is not None:
        _read("ssl_keyfile", key)
    key_setting, key_file = ("ssl_certfile", cert) if key is None else ("ssl_keyfile", key)

    def password() -> str:
        """Asked for where the key is encrypted. Without this, OpenSSL would ask whoever sits at the terminal."""
        if config.ssl_keyfile_password is None:
            raise refused(key_setting, f"the key in {key_file} is encrypted: set ssl_keyfile_password")
        return config.ssl_keyfile_password

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
    except ssl.SSLError:
        raise refused("ssl_certfile", f"{cert} has no certificate in PEM form") from None
    try:
        context.load_cert_chain(cert, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise refused(key_setting, f"the key in {key_file} is not that of the certificate in {cert}") from None
        wrong = "" if config.ssl_keyfile_password is None else ", or ssl_keyfile_password is not its password"
        raise refused(key_setting, f"{key_file} has no private key in PEM form{wrong}") from None
    return context


def _read(setting: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ValidationError.at(setting, f"{path} cannot be read: {error.strerror}") from None
