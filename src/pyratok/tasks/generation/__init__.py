"""New video by priors over pyramid tokens: their configuration, networks, sampling and files."""
