"""The commands, one file each: recipe, inputs, build, loop or batch job, artifact. Stages never import stages."""
