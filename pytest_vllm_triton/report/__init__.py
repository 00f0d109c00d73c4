"""From the outcome of tests to the verdict of requirements, and how both are shown."""
