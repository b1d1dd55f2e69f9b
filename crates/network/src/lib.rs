//! Networks, leases, bridges, taps and nftables rules.
