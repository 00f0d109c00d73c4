"""The errors that users see as one sentence, never as a traceback of ours."""

from __future__ import annotations


class UserError(Exception):
    """Something on the user's side must change: an option, a path, the network, the disk.

    The message is the whole output: what is wrong, and what to do about it.
    """


class RuntimeUnavailable(UserError):
    """The embedded server runtime cannot be created or found on this host."""


class ModelUnavailable(UserError):
    """The model under test cannot be found, downloaded or read."""


class ServerFailed(Exception):
    """A server did not get ready, or died.

    Attributes:
        log_tail: the last lines of the server's own log, "" if it wrote none.
        command: a line for a shell that starts the same server, "" if there is none.
    """

    def __init__(self, reason: str, log_tail: str = "", command: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.log_tail = log_tail
        self.command = command

    def __str__(self) -> str:
        text = self.reason
        if self.log_tail:
            text += f"\nThe server's last log lines:\n{self.log_tail}"
        if self.command:
            text += f"\nTo start it by hand:\n{self.command}"
        return text
