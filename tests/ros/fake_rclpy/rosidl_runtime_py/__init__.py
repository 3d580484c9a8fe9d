"""A double of rosidl_runtime_py: only where types are found by name."""
