"""The embedded cluster: a real Kubernetes on one Linux machine, in its own network namespace, without Docker.

`python -m tools.cluster --help` lists the commands; `tools.cluster.target` says which cluster a demo or a test talks to.
"""
