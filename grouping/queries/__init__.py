"""Questions to a store, in SQL: what a query may do, its limits, its process, and its answer."""
