"""Policies at work: rollouts, records, statistics, reports. `dps-eval` is `cli.main` over `evaluate.evaluate`."""
