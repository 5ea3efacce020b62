"""Where a server listens: a host, a port, a certificate. Imports nothing that takes long."""
import ipaddress
import socket
import ssl

__all__ = ["bind", "check_certificate", "is_loopback", "url_of"]


def bind(host, port):
    """
    A socket with an address, so that one that is taken is told before anything is loaded. It does not listen yet: who
    comes while nobody could answer is refused.

    Args:
        host (str): A name or an address.
        port (int): 0: any that is free.

    Raises:
        OSError: No such host, or the port can't be had; names the option.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        return bound
    except socket.gaierror as error:
        raise OSError(f"--host {host}: no such address: {error.strerror}") from None
    except OverflowError:
        raise OSError(f"--port {port}: expected 0 to 65535") from None
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: {_advice(error)}") from None


def _advice(error):
    if isinstance(error, PermissionError):
        return f"{error.strerror}: take a port from 1024"
    reason = error.strerror or str(error)
    return f"{reason}: take another port, or 0 for any" if "in use" in reason else reason


def is_loopback(host):
    """Whether only this machine reaches a server there."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def url_of(listener, has_tls=False):
    """str, what a browser takes."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if has_tls else 'http'}://{host}:{port}/"


def check_certificate(certfile, keyfile):
    """ValueError or OSError where a certificate and its key are no such pair."""
    if bool(certfile) != bool(keyfile):
        raise ValueError("--ssl_certfile and --ssl_keyfile go together: a certificate and its key")
    if certfile:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile)
        except ssl.SSLError as error:
            raise ValueError(f"--ssl_certfile {certfile}: no certificate that goes with --ssl_keyfile {keyfile}: "
                             f"{error.reason or error}") from None
