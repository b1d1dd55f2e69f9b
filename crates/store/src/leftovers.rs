//! What a run of a machine has on the host, found by its place rather than in the journal.
//!
//! The journal is not synced: after a power cut it may be empty while files that it named are still there (a socket in a run
//! folder on disk, the attachment to a network). Every such thing has a place that follows from the machine.

use std::path::Path;

use zmachine_network::Networks;
use zmachine_spec::{Failure, Home};
use zmachine_sys::file;
use zmachine_sys::host::boot_id;

use crate::catalog::Machine;
use crate::cgroup;
use crate::journal::Resource;

/// The resources of a run that has ended without its monitor, in the order in which they are made.
fn resources(home: &Home, machine: &Machine) -> Result<Vec<Resource>, Failure> {
    let path = home.run_dir(&machine.id);
    let mut all = vec![Resource::RunDir { path }];
    let group = cgroup::path(Path::new(cgroup::ROOT), home.data(), &machine.id);
    if file::is_there(&group)? {
        all.push(Resource::ControlGroup { path: group });
    }
    // Without its plan, the journal alone knows its networks; that is no reason to leave the rest.
    if let Ok(plan) = machine.plan() {
        let attached = plan.attachments().iter().flat_map(|attachment| attachment.resources());
        all.extend(attached.filter(|r| !r.outlives_stop()).map(Resource::Network));
    }
    if machine.state.boot_id == boot_id() {
        let processes = [
            ("hypervisor", machine.state.hypervisor),
            ("rootfs", machine.state.rootfs),
        ];
        let process = |(role, id): (&str, Option<_>)| {
            id.map(|id| Resource::Process {
                role: role.to_owned(),
                id,
            })
        };
        all.extend(processes.into_iter().filter_map(process));
    }
    Ok(all)
}

/// Undoes whatever the last run of a machine left. The caller holds the machine's lock.
///
/// # Errors
/// The first thing that cannot be undone; the others are undone all the same.
pub async fn undo(home: &Home, machine: &Machine, networks: &Networks) -> Result<(), Failure> {
    let mut result = Ok(());
    for resource in resources(home, machine)?.iter().rev() {
        let undone = resource.undo(networks).await;
        if result.is_ok() {
            result = undone;
        }
    }
    result
}
