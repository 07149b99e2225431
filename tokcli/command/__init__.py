"""What every command does around its work: options, session, inputs, output, dry-run plans, shares of bulk work."""
