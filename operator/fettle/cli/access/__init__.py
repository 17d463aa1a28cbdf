"""The command line's access to a cluster and its claims."""
