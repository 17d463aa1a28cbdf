"""One file a recipe step and toolchain."""
