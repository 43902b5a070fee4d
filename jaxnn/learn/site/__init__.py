"""The site: lessons, reference and how-to pages, all of whose code runs when it is built."""
