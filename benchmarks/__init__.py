"""Programs that measure: each takes --quick and --json, and writes one report."""
