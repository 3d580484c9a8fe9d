"""The automatic choice: the quickest exact sampler for this policy on this device, and its runtime, by measurement.

    runtimes.py      the ways to run a policy that are tried
    cost.py          c(n), the seconds of a network call with n rows, measured
    rounds.py        the rounds a sampler makes, seen from its network calls
    acceptance.py    how often drafted steps are accepted, by step and by distance from the round's start
    windows.py       windows by step that minimise the expected latency, by dynamic programming
    sharing.py       the same for chains that share their calls, learned while they run
    candidates.py    the samplers that are tried
    trial.py         a sampler tried: its rounds, and what they would cost one robot
    timing.py        chunks of several samplers timed side by side
    search.py        every sampler under one runtime, the best few under the others
    choose.py        the choice, and the rule that nothing slower than the sequential sampler is picked
    record.py        what is stored beside a checkpoint, and how sampler=auto reads it
    fingerprint.py   whether the weights are those it was measured with
    report.py        a choice in words and as a table
    bench.py         what dps-bench shows: the choice as it was measured, and as it is now

Every candidate draws from the same law; only what a chunk costs is at stake. `record` is what a policy imports.
"""
