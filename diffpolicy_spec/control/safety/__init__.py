"""What a command must never be: limits, guards, the watchdog, the emergency stop. Knows nothing of policies."""
