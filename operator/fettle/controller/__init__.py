"""kopf handlers that only enqueue, the queue, and short reconcilers: gather, decide, apply."""
