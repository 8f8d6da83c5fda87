"""Counts to token shards to position-addressed batches; knows nothing of models."""
