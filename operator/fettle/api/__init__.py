"""The public API and the contracts that operator, optimizer, server and CLI share. No I/O, no heavy library."""
