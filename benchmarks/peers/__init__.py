"""Compare effbench with its peers: one file per part, raw rows under results/benchmarks/, a page made from the rows."""
