"""The report of one seed: the same tables as text, LaTeX, CSV and HTML, figures, and the page that shows them."""
