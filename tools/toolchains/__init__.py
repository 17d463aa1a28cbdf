"""Toolchains too large or too different for the one locked environment: each has an environment of its own, and tests that run in it.

A toolchain is one file, `tools/toolchains/NAME.toml`, its tests are `tests/toolchains/NAME/`, and what it installs is locked with hashes in
`requirements/toolchains/NAME.txt`, which `python -m tools.toolchains lock NAME` writes. Keys of the file:

    about         one line: what is tested here
    requirements  what the toolchain needs, each pinned (name==version)
    extras        of pyproject.toml, which give the tests what fettle itself needs; ["optimizer"] where none are named
    alone         packages without what they need, for the files in them, each pinned
    overrides     versions that replace what extras and packages ask for, where two of them cannot agree
    constrained   whether everything else has the versions of requirements/dev.txt; true where it is not said
    torch         whether PyTorch comes along, without NVIDIA's libraries (tools/torch_on_cpu.py); false where it is not said
"""
