"""What may be wrong with an installation, looked for; each finding says how to mend it."""
