"""The automatic choice: which exact sampler is the quickest for this policy on this device, found by measurement.

    cost.py          c(n), the seconds of a network call with n rows, measured
    rounds.py        the rounds a sampler makes, seen from its network calls
    acceptance.py    how often drafted steps are accepted, by step and by distance from the round's start
    windows.py       windows by step that minimise the expected latency, by dynamic programming
    candidates.py    the samplers that are tried
    timing.py        chunks of several samplers timed side by side
    choose.py        the search, and the rule that nothing slower than the sequential sampler is picked
    record.py        what is stored beside a checkpoint, and how sampler=auto reads it

Every candidate draws from the same law; only what a chunk costs is at stake. `record` is what a policy imports.
"""
