"""Questions to the ledger and trials of policies, answered by niced processes of their own."""
