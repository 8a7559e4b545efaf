"""Bytes: messages, run frames and ledger entries to and from what Redis stores.

Only this layer imports msgpack, and it knows every size limit. It does no input or output, and knows neither Redis
nor who sends what to whom.
"""
