"""A device makes its own key, and asks for a certificate: the key then never leaves it. Needs `cryptography`."""

from edge_runtime.errors import ConfigError
from edge_runtime.message import check_name


def make(name: str) -> tuple[bytes, bytes]:
    """Make a key, and a certificate signing request for it; both PEM.

    Raises:
        ConfigError: the name cannot be, or `cryptography` is not installed here.
    """
    check_name(name, "--request")
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    except ImportError as error:
        raise ConfigError(f"--request needs {error.name}; run: pip install cryptography") from error
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, request.public_bytes(Encoding.PEM)
