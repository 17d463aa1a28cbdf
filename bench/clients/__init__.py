"""Other projects' clients of the protocol, unmodified, against a server of this checkout: `python -m bench.clients`."""
