"""A person's access to a cluster and to the claims in it."""
