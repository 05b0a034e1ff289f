"""The command `parallel-decode`."""
