"""Programs that run inside a short-lived pod, sent there as text: nothing but the standard library."""
