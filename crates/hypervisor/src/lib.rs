//! The hypervisor drivers.
