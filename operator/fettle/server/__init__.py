"""The inference server: Open Inference Protocol V2 over HTTP."""
