"""What is seen of runs and nodes, by operators and by a ServerApp that waits: states, reasons, and the words for them.

It reads through broker/, writes nothing, and must not know how anything is shown.
"""
