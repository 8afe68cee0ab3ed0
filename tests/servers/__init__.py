"""Real servers for tests and benchmarks: each a process of its own on 127.0.0.1, gone when its parent is gone."""
