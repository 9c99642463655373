"""Two small trained Llama checkpoints and the scripts that train and measure them."""
