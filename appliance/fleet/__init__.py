"""One Home and its workers over Redis: what carries messages, work and budgets between nodes.

Nothing here is trusted: what matters is signed (`policy.trust`, `policy.fleet`), so that a Redis that
was taken over can keep things back, and cannot grant any.
"""
