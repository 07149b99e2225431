"""What `tok eval` measures of each kind of artifact, with everything a number needs to be believed beside it."""
