"""The decode worker's thinking: KV pool, batches, attention, sampling."""
