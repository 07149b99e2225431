"""What `tok eval` measures for each kind of artifact, and the protocol behind every number."""
