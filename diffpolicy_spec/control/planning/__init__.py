"""Where a control loop gets its chunks from: a worker process, a server."""
