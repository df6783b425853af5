"""The rules of idempotency: no I/O, no clock, no randomness, no framework; standard library only.

Read in this order: `keys` and `fingerprint` (what a request is), `record` (what is stored),
`policy` (what a route asks for), `commands` (what can be asked of the world), `engine` (every
decision, once), `problems` (how a refusal is said).
"""
