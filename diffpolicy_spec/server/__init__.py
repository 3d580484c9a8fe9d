"""The policy server, and its client, which needs no torch."""
