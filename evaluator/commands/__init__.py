"""What commands do between parsing and printing."""
