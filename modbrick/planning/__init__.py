"""What a run would need and how fast it would go, before any machine is rented."""
