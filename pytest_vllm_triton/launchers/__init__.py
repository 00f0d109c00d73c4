"""The ways to get a Triton server: as a process, in a container, or a running one.

``base`` holds what all of them share (specification, handle, log) and imports only the
standard library; the launchers themselves are imported where they are used.
"""
