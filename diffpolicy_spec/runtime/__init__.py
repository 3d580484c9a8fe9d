"""How the network is called: replicas on several devices, processes, and what was measured about them."""
