"""The ways to get a Triton server: as a process, in a container, or a running one.

``base`` holds what all of them share (specification, handle, log) and imports nothing third-party;
the launchers themselves are imported where they are used.
"""
