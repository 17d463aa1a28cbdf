"""The artifact store: digests, manifests, cache keys, over fsspec."""
