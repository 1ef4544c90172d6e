"""The harness: it trains, protects, attacks, scores and meters; plugins only make progress."""
