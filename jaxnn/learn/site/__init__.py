"""The site: lessons whose code runs when it is built, how-to pages, and a reference."""
