"""From raw data to the model's inputs. The optimizer reads evaluation data with this code, and the server requests: what was measured is served."""
