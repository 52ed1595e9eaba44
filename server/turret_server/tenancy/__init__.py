"""Tenants: who calls, what they may use, how much of it, and what they used.

schema, database   tables and the engine behind them    administration   changes, each audited
directory          the tables in memory, for requests   quotas           what a tenant may still do
journal, ledger    what was used, exactly once
"""
