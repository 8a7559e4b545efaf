"""Bytes: messages, run frames and ledger entries to and from what Redis stores.

This layer is the only importer of msgpack and knows every size limit. It does no input or output, and knows
neither Redis nor who sends what to whom.
"""
