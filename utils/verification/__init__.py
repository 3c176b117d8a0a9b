"""Whether what a results directory says is what its files and models give: everything is made again and compared."""
