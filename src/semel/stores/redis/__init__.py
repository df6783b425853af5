"""The store of records in Redis or Valkey: one server, or a cluster."""

from semel.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
