"""Real Kubernetes clusters for the demo and the tests: kind's, where Docker runs, or an embedded one in its own network namespace.

`python -m tools.cluster --help` lists the commands; `tools.cluster.target` says which cluster a demo or a test talks to.
"""
