"""Who may come in to the embedded broker of a fleet, and what each may do there."""

import logging
import ssl

from edge_runtime import identity
from edge_runtime.coordinator import broker_config
from edge_runtime.coordinator.pki import Fleet
from edge_runtime.coordinator.refusals import Refusals
from edge_runtime.errors import ConfigError

log = logging.getLogger(__name__)


class Doors:
    """The fleet's certificates and rules, as they are now."""

    def __init__(self, fleet: Fleet, refusals: Refusals) -> None:
        """Read them.

        Raises:
            ConfigError: one of them cannot be read.
        """
        self._fleet, self._refusals = fleet, refusals
        self._rules = broker_config.rules(fleet)
        self._watch = broker_config.Watch(fleet, self._changed)

    def context(self) -> ssl.SSLContext:
        """Make the server's half of TLS: clients must have a certificate that the fleet's authority signed."""
        folder = self._fleet.broker
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / identity.AUTHORITY))
        context.load_cert_chain(folder / identity.CERTIFICATE, folder / identity.KEY)
        context.verify_mode, context.minimum_version = ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_2
        context.num_tickets = 0  # a client begins anew each time, and a session that is taken up again proves nothing
        context.sslobject_class = _noting(self._refusals)
        return context

    def look(self) -> None:
        """Read again what has changed."""
        self._watch.look()

    def _changed(self) -> None:
        try:
            self._rules = broker_config.rules(self._fleet)
        except ConfigError as error:
            log.error("going on with the former rules: %s", error)

    def closed_to(self, serial: int) -> bool:
        """Say whether a certificate is revoked."""
        return serial in self._fleet.revoked()

    def allows(self, name: str, word: str, topic: str) -> bool:
        """Say whether a client may read or write there, and count it if not."""
        if broker_config.allows(self._rules, name, word, topic):
            return True
        self._refusals.add(f"{name!r} may not {word} {topic[:128]!r}")
        return False


def _noting(refusals: Refusals) -> type[ssl.SSLObject]:
    class Noting(ssl.SSLObject):
        """Counts handshakes that failed: asyncio says nothing of them."""

        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                refusals.add(f"a TLS handshake: {getattr(error, 'verify_message', '') or error.reason or error}")
                raise

    return Noting
