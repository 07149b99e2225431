"""What `tok viz-codebook` shows: the meaning of each code, as pictures, numbers and a page to explore."""
