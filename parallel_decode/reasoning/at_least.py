"""`at_least`: the check of numbers that methods are given."""


def at_least(least: float, **values: float | None) -> None:
    """Raises ValueError for a value below `least`, by its name; None is no value."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
