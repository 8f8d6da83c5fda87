"""Turn counts into token shards, and shards into batches addressed by position; independent of any model."""
