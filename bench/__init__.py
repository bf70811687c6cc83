"""The benches: every figure of the README, beside the peers, in one interleaved run."""
