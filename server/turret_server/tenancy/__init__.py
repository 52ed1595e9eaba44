"""Tenants: who calls, what they may use, how much of it, and what they used.

schema, database   tables and the engine behind them     administration   changes, each audited
directory          the tables in memory, for requests    reports          what the tables say
journal, ledger    what was used, exactly once           quotas           what a tenant may still do
service            all of it, with one life              principal        who calls
"""
