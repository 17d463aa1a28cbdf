"""One file a runtime: load an artifact and run it. Shared by optimizer and server, so that what was measured is what serves."""
