"""What every command does around its work: options, session, inputs, output, plan of a dry run, shares of bulk work."""
