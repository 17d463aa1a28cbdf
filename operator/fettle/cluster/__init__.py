"""Kubernetes I/O: the client, what the watches bring, rendering of objects, Jobs, the ledger, the lease, events."""
