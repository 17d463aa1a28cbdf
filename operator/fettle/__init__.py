"""Fettle: a Kubernetes operator for optimized model deployment."""

__version__ = "0.1.0"
