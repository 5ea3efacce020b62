"""What several rooms need; imports nothing else of this package."""
