"""The address of a server, the secret that it may have, and the proxy that leads to it."""

import ipaddress
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from firered_lit.config.api_keys import KeyVariable, read_key
from firered_lit.errors import UserError


@dataclass(frozen=True)
class ServerAddress:
    """An OpenAI-compatible server.

    Args:
        url: as http://localhost:8000/v1, without a slash at its end.
        key_variable: the environment variable that holds the key.
        key: the key, or None. It is in no text of this object.
        proxy: the proxy that leads there, or None.
    """

    url: str
    key_variable: str
    key: str | None = field(default=None, repr=False)
    proxy: str | None = field(default=None, repr=False)

    @staticmethod
    def of(url: str, key_variable: KeyVariable) -> "ServerAddress":
        """Read the key and the proxy out of the environment.

        Proxies are those of http_proxy, https_proxy and no_proxy; none is used for this machine itself.

        Raises:
            UserError: the URL is none, it carries a password, the variable's name does not end in _API_KEY, the key is
                no header's text, or the proxy is of a kind that is not spoken.
        """
        host, scheme = _host(url)
        key = read_key(key_variable) or None
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UserError(f"{key_variable}: holds characters that a key cannot have, such as a line break")
        return ServerAddress(url.rstrip("/"), key_variable, key, None if is_loopback(host) else _proxy(host, scheme))

    @property
    def in_clear(self) -> bool:
        """Return whether the key travels over a network without encryption."""
        return self.key is not None and self.url.startswith("http:") and not is_loopback(_host(self.url)[0])


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _host(url: str) -> tuple[str, str]:
    """Host and scheme of a URL."""
    try:
        parts = urlsplit(url)
        host, scheme, _ = parts.hostname, parts.scheme, parts.port  # the port is checked when it is read
    except ValueError as problem:
        raise UserError(f"judge.url={url}: {problem}") from None
    if scheme not in ("http", "https") or not host or any(c.isspace() or not c.isprintable() for c in url):
        raise UserError(f"judge.url={url}: must be a URL that begins with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise UserError("judge.url: carries a name or a password; put the key into the variable of judge.key_variable")
    if parts.query or parts.fragment:
        raise UserError(f"judge.url={url}: ends before `?` and `#`, as http://localhost:8000/v1")
    return host, scheme


def _proxy(host: str, scheme: str) -> str | None:
    """The proxy that the environment names for a host."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise UserError(f"{scheme}_proxy: only HTTP proxies are spoken; set no_proxy={host} or another proxy")
    return proxy
