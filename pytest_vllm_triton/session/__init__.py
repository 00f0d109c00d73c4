"""What happens in a pytest session that uses the suite."""
