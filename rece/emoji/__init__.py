"""How Emoji Diffusion, the embedded model, is made: world, images, text encoder, VAE, UNet and judge."""
