"""What `tok viz-codebook` draws: what each code means, as pictures, numbers and a page to walk through."""
