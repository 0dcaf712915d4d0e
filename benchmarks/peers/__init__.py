"""effbench against its peers: one file a part, raw rows under results/benchmarks/, a page made from them alone."""
