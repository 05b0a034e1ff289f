"""`Interrupted`: what a program gets that was stopped."""


class Interrupted(RuntimeError):
    """The run was stopped before the program could begin, or while it waited for a call; or nobody
    wants the call's result any more."""
