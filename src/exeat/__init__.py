"""exeat: the egress firewall appliance for machines that run AI agents."""
